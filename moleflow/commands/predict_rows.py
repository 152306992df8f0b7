"""`moleflow predict --output`: its options, and the exit status."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from moleflow.folder.sinks import Sink
    from moleflow.model.loading import AnyDetector

__all__ = ["FailOn", "RowOptions", "exit_status", "write_rows"]

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

    def check(self, json: bool) -> None:
        """Raise ``ConfigurationError`` for options that do not go together, before anything is loaded."""
        from moleflow.folder.output import FORMATS
        from moleflow.model.errors import ConfigurationError

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
