"""The detector of whatever a path names: a checkpoint, or an exported folder. Imports PyTorch only for a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import ConfigurationError
from moleflow.model.exported.folder import is_exported
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE

if TYPE_CHECKING:
    from moleflow.model.detector import Detector
    from moleflow.model.exported.detector import ExportedDetector

    AnyDetector = Detector | ExportedDetector

__all__ = ["load_detector"]

_OF_FOLDERS = {"device": ("auto", "cpu"), "precision": ("auto", "fp32"), "engine": ("auto", "openvino")}
"""What an exported folder can be asked for."""


def load_detector(
    path: Path | str,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    plugin: str | None = None,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
) -> "AnyDetector":
    """Open a checkpoint or an exported folder; options as for ``Detector.load``.

    Raises:
        ConfigurationError: an exported folder cannot be computed as the options say, or OpenVINO is not installed.
        CheckpointError, BackboneError, DeviceError: see ``moleflow.model.errors``.
    """
    if not is_exported(path):
        from moleflow.model.detector import Detector

        return Detector.load(
            path,
            device=device,
            precision=precision,
            engine=engine,
            plugin=plugin,
            false_alarm_rate=false_alarm_rate,
            unknown_limit=unknown_limit,
        )
    from moleflow.model.exported.detector import ExportedDetector

    given = {"device": device, "precision": precision, "engine": engine}
    for name, possible in _OF_FOLDERS.items():
        if given[name] not in possible:
            raise ConfigurationError(
                f"{name} cannot be {given[name]!r} for the exported folder {str(path)!r}; use "
                f"{' or '.join(possible)}, or the checkpoint that it was exported from."
            )
    return ExportedDetector.load(path, false_alarm_rate=false_alarm_rate, unknown_limit=unknown_limit)
