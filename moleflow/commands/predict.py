"""`moleflow predict`: find defects in picture files, without a server."""

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moleflow.commands.options import (
    CheckpointArgument,
    Device,
    FalseAlarmRate,
    Plugin,
    PrecisionName,
    PrecisionOption,
    UnknownLimit,
)

if TYPE_CHECKING:
    from model.detector import Detector
    from service.render import Job

__all__ = ["predict"]

BATCH_SIZE = 8
"""Pictures in one pass through the model."""


class MapName(StrEnum):
    """How the anomaly map is printed with --json."""

    NONE = "none"
    PNG = "png"
    NPY = "npy"


def predict(
    checkpoint: CheckpointArgument,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE…", help="Picture files.")],
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="The product in all pictures; skips routing.")
    ] = None,
    save_overlay: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each picture with its heat map laid over it into DIR.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture, with the API's fields.")
    ] = False,
    false_alarm_rate: FalseAlarmRate = None,
    unknown_limit: UnknownLimit = None,
    map_: Annotated[MapName, typer.Option("--map", help="With --json: the anomaly map too, in base64.")] = MapName.NONE,
    plugin: Plugin = None,
    device: Device = "auto",
    precision: PrecisionOption = PrecisionName.AUTO,
) -> None:
    """Find defects in picture files: product, score, verdict, and an overlay of the anomaly map if wanted.

    A picture of no learned product is said to be UNKNOWN, without score and overlay, unless --task names its product. A
    picture that cannot be read is named on standard error, the others go on; the exit status is then 1.
    """
    from model.detector import Detector
    from model.threads import configure_threads

    configure_threads()
    rates = {"false_alarm_rate": false_alarm_rate, "unknown_limit": unknown_limit}
    detector = Detector.load(
        checkpoint, device=device, precision=precision.value, plugin=plugin,
        **{name: rate for name, rate in rates.items() if rate is not None},
    )  # fmt: skip
    names = _overlay_names(pictures, save_overlay) if save_overlay else {}
    failed = 0
    for start in range(0, len(pictures), BATCH_SIZE):
        chunk = pictures[start : start + BATCH_SIZE]
        jobs = dict(_jobs(detector, chunk, task))
        failed += len(chunk) - len(jobs)
        for path, job in jobs.items():
            _show(path, job, map_.value if json else None)
            if path in names:
                _save_overlay(names[path], job)
    if failed:
        raise typer.Exit(1)


def _jobs(detector: "Detector", paths: Sequence[Path], task: str | None) -> Iterator[tuple[Path, "Job"]]:
    """Decode and judge ``paths`` as one batch, exactly as the service does."""
    from time import perf_counter

    from model.errors import ImageError, UnsupportedImageError
    from model.picture import MAX_PIXELS
    from service.decode import decode
    from service.render import Job

    readable = []
    for path in dict.fromkeys(paths):
        started = perf_counter()
        try:
            data = path.read_bytes()
            decoded = decode(data, detector.preprocessing, max_pixels=MAX_PIXELS)
        except OSError as error:
            problem: Exception = UnsupportedImageError(f"cannot be read: {error.strerror or error}.")
        except ImageError as error:
            problem = error
        else:
            readable.append((path, data, decoded, perf_counter() - started))
            continue
        print(f"error: {path}: {problem}", file=sys.stderr)
    started = perf_counter()
    findings = detector.predict([decoded.model_input for _, _, decoded, _ in readable], [task] * len(readable))
    seconds = perf_counter() - started
    for (path, data, decoded, decoding), finding in zip(readable, findings, strict=True):
        yield path, Job(
            data=data, width=decoded.width, height=decoded.height, finding=finding,
            checkpoint=detector.checkpoint, forced=task is not None,
            decode_seconds=decoding, queue_seconds=0.0, inference_seconds=seconds,
        )  # fmt: skip


def _show(path: Path, job: "Job", json_map: str | None) -> None:
    """One line: JSON when ``json_map`` names the map's encoding, else for people."""
    import json

    from model.results import Refusal
    from service.render import AnswerForm, render

    if json_map is not None:
        answer = json.loads(render(job, AnswerForm(map_encoding=json_map)).content)  # type: ignore[arg-type]
        typer.echo(json.dumps({"path": str(path)} | answer))
        return
    found = job.finding
    if isinstance(found, Refusal):
        nearest = found.candidates[0]
        typer.echo(f"{path}: UNKNOWN  no learned product; nearest {nearest.name}, distance {nearest.distance:.1f}")
        return
    verdict = "DEFECT" if found.is_anomalous else "good"
    typer.echo(
        f"{path}: {verdict:6}  {found.task.name}  score {found.score:.2f}  threshold {found.threshold:.2f}  "
        f"p {found.p_value:.2g}"
    )


def _overlay_names(pictures: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each overlay goes: the picture's own name, with its folder's in front where two would collide."""
    from model.errors import ConfigurationError

    names = {}
    stems = [path.stem for path in dict.fromkeys(pictures)]
    for path in dict.fromkeys(pictures):
        unique = path.stem if stems.count(path.stem) == 1 else "_".join((*path.parent.parts[-2:], path.stem)).strip("/")
        names[path] = folder / f"{unique}_overlay.png"
    if len(set(names.values())) < len(names):
        raise ConfigurationError("two pictures would get the same overlay file; predict them in separate calls.")
    return names


def _save_overlay(target: Path, job: "Job") -> None:
    from model.atomic import atomic_write
    from model.results import Refusal
    from service.render import AnswerForm, render

    if isinstance(job.finding, Refusal):
        print(f"  no overlay of {target.stem.removesuffix('_overlay')}: its product is unknown", file=sys.stderr)
        return

    with atomic_write(target) as temporary:
        temporary.write_bytes(render(job, AnswerForm(media_type="image/png")).content)
    print(f"  overlay: {target}", file=sys.stderr)
