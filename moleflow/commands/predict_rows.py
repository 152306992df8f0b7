"""`moleflow predict --output`: its options, and the exit status."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from moleflow.cluster.connection import Share
    from moleflow.folder.sinks import Sink
    from moleflow.model.loading import AnyDetector

__all__ = ["FailOn", "RowOptions", "exit_status", "write_rows", "write_rows_on_ray"]

FailOn = Literal["never", "error", "anomaly", "unknown"]
"""What makes the exit status other than 0; each value includes those before it."""

EXIT_ERROR, EXIT_FOUND, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Where rows go."""

    output: Path | None
    watch: bool
    webhook: str | None
    mqtt: str | None
    ray: str | None = None

    def check(self, json: bool, *, overlays: bool = False) -> None:
        """Raise ``ConfigurationError`` for options that do not go together, before anything is loaded."""
        from moleflow.folder.output import FORMATS
        from moleflow.model.errors import ConfigurationError

        if self.ray is not None:
            self._check_for_ray(json, overlays)
            return
        if self.output is None:
            for name, given in (("--watch", self.watch), ("--webhook", self.webhook), ("--mqtt", self.mqtt)):
                if given:
                    raise ConfigurationError(f"{name} needs --output FILE, which the rows are appended to.")
            return
        if json:
            raise ConfigurationError("--json prints and --output writes a file; give one (FILE.jsonl holds JSON).")
        if self.output.suffix.lower() not in FORMATS:
            raise ConfigurationError(f"--output {str(self.output)!r} should end in one of {', '.join(FORMATS)}.")
        if self.watch and self.output.suffix.lower() == ".parquet":
            raise ConfigurationError("--watch appends rows, which Parquet cannot; let --output end in .csv or .jsonl.")

    def _check_for_ray(self, json: bool, overlays: bool) -> None:
        from moleflow.cluster.connection import require_ray
        from moleflow.model.errors import ConfigurationError

        if self.output is None or self.output.suffix.lower() in (".csv", ".jsonl", ".parquet"):
            raise ConfigurationError("--ray needs --output FOLDER, into which the workers write Parquet files.")
        others = {"--watch": self.watch, "--webhook": self.webhook, "--mqtt": self.mqtt}
        for name, given in {**others, "--json": json, "--save-overlay": overlays}.items():
            if given:
                raise ConfigurationError(f"{name} cannot be used with --ray; leave out one of them.")
        require_ray()

    def sinks(self) -> "list[Sink]":
        """The receivers of rows. Raises ``ConfigurationError`` if one cannot be used."""
        from moleflow.folder.sinks import Mqtt, Webhook

        return [kind(url) for kind, url in ((Webhook, self.webhook), (Mqtt, self.mqtt)) if url is not None]


def exit_status(fail_on: FailOn, errors: int, verdicts: Collection[str]) -> int:
    """The exit status. Errors come first: where a file could not be used, the verdicts are not all there."""
    if fail_on == "never":
        return 0
    if errors:
        return EXIT_ERROR
    found = {"error": set[str](), "anomaly": {"anomalous"}, "unknown": {"anomalous", "unknown_product"}}[fail_on]
    return EXIT_FOUND if found & set(verdicts) else 0


def write_rows(
    detector: "AnyDetector",
    rows: RowOptions,
    images: Sequence[Path],
    task: str | None,
    max_pixels: int | None,
    save_overlay: Path | None,
    fail_on: FailOn,
) -> int:
    """Write the rows of all images; returns the exit status."""
    from moleflow.folder.run import Request, predict_into
    from moleflow.image_files import find_images
    from moleflow.model.images.decode import SUFFIXES

    assert rows.output is not None
    request = Request(
        find=lambda on_problem: find_images(images, SUFFIXES, on_problem, save_overlay),
        output=rows.output,
        task=task,
        max_pixels=max_pixels,
        overlays=save_overlay,
        watch=rows.watch,
    )
    try:
        tally = predict_into(detector, request, rows.sinks())
    except KeyboardInterrupt:
        print("stopped; the same command continues after the rows that are written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return exit_status(fail_on, tally.errors + tally.problems, +tally.verdicts)


def write_rows_on_ray(
    checkpoint: Path,
    rows: RowOptions,
    images: Sequence[Path],
    task: str | None,
    max_pixels: int | None,
    fail_on: FailOn,
    share: "Share",
    loading: Mapping[str, Any],
) -> int:
    """Have the workers of a Ray cluster write the rows of all images; returns the exit status.

    ``loading`` are the arguments of ``load_detector`` for the workers.
    """
    from moleflow.cluster.prediction import Loading, predict_on_ray
    from moleflow.folder.run import Request
    from moleflow.image_files import find_images
    from moleflow.model.images.decode import SUFFIXES
    from moleflow.model.loading import load_detector
    from moleflow.model.names import find_named
    from moleflow.training.progress import Reporter

    assert rows.output is not None
    assert rows.ray is not None
    here = {**loading, "device": "cpu", "precision": "auto", "engine": "auto"}
    detector = load_detector(checkpoint, **here)
    request = Request(
        find=lambda on_problem: find_images(images, SUFFIXES, on_problem),
        output=rows.output,
        task=None if task is None else find_named(task, detector.tasks).name,
        max_pixels=max_pixels,
        overlays=None,
        watch=False,
    )
    workers = Loading(checkpoint.resolve(), {**loading, "device": share.device(loading["device"])}, share.threads)
    try:
        tally = predict_on_ray(detector, workers, request, rows.ray, share, Reporter())
    except KeyboardInterrupt:
        print("stopped; the same command continues after the rows that are written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return exit_status(fail_on, tally.errors + tally.problems, +tally.verdicts)
