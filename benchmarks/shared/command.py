"""What every benchmark's command line does: options, gates, and the result on the screen and in files."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moleflow.model.files.atomic import atomic_write
from moleflow.training.report.markdown import markdown_table

__all__ = ["Gate", "add_output", "finish", "make_parser", "positive", "prepare"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One demand on a result: the measured value and its limit as text, and whether it is met."""

    name: str
    value: str
    limit: str
    passed: bool


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of the benchmark called ``name``; its module's docstring is the help."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that ``finish`` writes to."""
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write FILE.json, and FILE.md beside it")


def positive(text: str) -> int:
    """A whole number from 1, for ``argparse``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def prepare(plugin: str | None = None) -> int:
    """Set the number of threads, import the plugin that registers a backbone, and return the number of threads."""
    # Here, not at the top: some benchmarks must not load PyTorch.
    from moleflow.model.features.backbone import import_plugin
    from moleflow.model.runtime.threads import configure_threads

    threads = configure_threads()
    if plugin:
        import_plugin(plugin)
    return threads


def finish(output: Path | None, result: Mapping[str, Any], text: str, gates: Sequence[Gate] = ()) -> int:
    """Print ``text`` and the table of gates; write both to ``output`` with the suffix ``.md``, and ``result`` as JSON.

    Returns the exit status: 1 when a gate fails.
    """
    text = text.rstrip("\n") + "\n"
    if gates:
        rows = [[each.name, each.value, each.limit, "holds" if each.passed else "**fails**"] for each in gates]
        text += "\n" + markdown_table(["gate", "measured", "limit", ""], rows) + "\n"
        result = {**result, "gates": [asdict(each) for each in gates]}
    if output:
        for path, content in ((output, json.dumps(result, indent=1) + "\n"), (output.with_suffix(".md"), text)):
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    print(text)
    return int(not all(each.passed for each in gates))
