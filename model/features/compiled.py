"""Features computed by OpenVINO: the network as one compiled graph, on a CPU in float32.

Exporting and converting a network takes seconds, so the result is kept in a folder by what it depends on, and later
starts only compile it, which takes a fraction of a second.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import moleflow
from moleflow.model.errors import BackboneError, describe
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import STAGE_TYPE, PatchFeatures

__all__ = ["CompiledFeatures", "cache_folder"]

FORM = 1
"""Changes when this module makes another graph of the same network."""

PACKAGES = ("openvino", "timm", "torch")
"""Packages whose release may change the graph."""

_LARGEST_BATCH = 1024
"""Of the exported graph; the service's own limit."""

_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where converted networks are kept: in ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "moleflow" / "openvino"


class CompiledFeatures:
    """``(B, S, S, 3)`` in 0…255 to features of patches, as ``FeatureExtractor``; thread-safe.

    Args:
        extractor: of the plain network, in float32 on the CPU.
        identity: tells the network from others: its configuration, and the digest of its weights.
        folder: where the converted network is kept; see ``cache_folder``.

    Raises:
        BackboneError: OpenVINO cannot convert or compile the network.
    """

    def __init__(self, extractor: FeatureExtractor, identity: str, folder: Path) -> None:
        import openvino

        # As many threads as PyTorch has, which a setting bounds; the two never work at the same time.
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        path = folder / f"{_key(extractor, identity)}.xml"
        core, local = openvino.Core(), threading.local()
        try:
            network = _read(core, path) or _converted(extractor, path)
            self._compiled = core.compile_model(network, "CPU", options)
        except Exception as error:  # exporting runs the network's own code
            raise BackboneError(
                f"OpenVINO cannot run the backbone ({describe(error)}); use engine torch, or another backbone."
            ) from error
        self._local: Any = local

    def __call__(self, images: torch.Tensor) -> PatchFeatures:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        found = self._local.request.infer({0: images.float().numpy()}, share_inputs=True)
        embeddings, *stages = (torch.from_numpy(found[output]) for output in self._compiled.outputs)
        return PatchFeatures(embeddings, tuple(stage.to(STAGE_TYPE) for stage in stages))


class _Plain(nn.Module):
    """The extractor with a plain tuple of float32 results, for the export."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.extractor(images)
        return features.embeddings, *(stage.float() for stage in features.stages)


def _key(extractor: FeatureExtractor, identity: str) -> str:
    facts = {
        "form": FORM,
        "moleflow": moleflow.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "network": identity,
        "preprocessing": extractor.preprocessing.model_dump(),
        "stages": extractor.pooled_stages,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _read(core: Any, path: Path) -> Any | None:
    """The converted network in ``path``, if it is there and whole."""
    if not path.exists():
        return None
    try:
        return core.read_model(path)
    except Exception as error:
        _logger.warning("The converted network %s cannot be read and is made again: %s", path.name, describe(error))
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch and OpenVINO tell of their own insides: warnings, and messages to the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without any, the first message would install one for good
    root.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _converted(extractor: FeatureExtractor, path: Path) -> Any:
    """The network as OpenVINO's, which is also written to ``path``, if that is possible."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    size = extractor.preprocessing.image_size
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad(), _quiet():
        images = torch.zeros(2, size, size, 3)
        program = torch.export.export(_Plain(extractor).eval(), (images,), dynamic_shapes=({0: batch},))
        # Not openvino.convert_model, which reports to its makers.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # must outlive the conversion
        network = frontend.convert(frontend.load(decoder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as made:
            openvino.save_model(network, Path(made) / path.name, compress_to_fp16=False)
            # The weights first: what has a description is whole.
            for suffix in (".bin", ".xml"):
                (Path(made) / path.name).with_suffix(suffix).replace(path.with_suffix(suffix))
    except OSError as error:
        _logger.warning("The converted network is not kept, and made again at the next start: %s", describe(error))
    return network
