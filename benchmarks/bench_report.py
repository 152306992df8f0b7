"""``benchmarks/RESULTS.md``, from what is known of each section."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench_sections import Section

__all__ = ["Record", "results"]

Record = dict[str, Any]
"""What is kept of a section: ``status`` (measured, failed), ``reason``, ``table``, and what it was measured with."""


def results(machine: Mapping[str, str], rows: Sequence[tuple[Section, Record | None]]) -> str:
    """The whole file."""
    lines = [
        "# Results of `make bench`", "",
        "Written by [`bench.py`](bench.py) from runs on one machine, with random weights and few rounds: times, ratios "
        "and memory, not accuracy. Ratios are taken within a round; ranges are the least and the greatest of the "
        "rounds. `PEERS` is the neighbours' environment, anything in `build/bench` is made on the way.", "",
        "| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), "",
        "| section | state | seconds | load before | date | commit |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for section, record in rows:
        cells = ["not measured", "", "", "", ""]
        if record:
            cells = [
                "**failed**" if record["status"] == "failed" else "measured",
                f"{record['seconds']:.0f}", f"{record['load']:.2f}", record["date"], f"`{record['commit']}`",
            ]  # fmt: skip
        lines.append(f"| {section.title} | {' | '.join(cells)} |")
    for section, record in rows:
        if record:
            lines += ["", f"## {section.title}", "", section.question, "", "```sh", record["command"], "```", ""]
            lines += [f"**Failed**: {record['reason']}"] if record["status"] == "failed" else below(record["table"])
    return "\n".join(lines) + "\n"


def below(table: str) -> Iterator[str]:
    """A benchmark's own Markdown as part of a section: without its title, and its headings one level down."""
    for number, line in enumerate(table.strip().splitlines()):
        if not (number <= 1 and (line.startswith("# ") or not line)):
            yield f"#{line}" if line.startswith("#") else line
