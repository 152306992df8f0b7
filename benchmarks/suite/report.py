"""``benchmarks/RESULTS.md``, from what is known of each section."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.suite.sections import Section
from moleflow.training.report.markdown import markdown_table

__all__ = ["Record", "results"]

NOISY = 0.1
"""A section says so when other work took more of the processors than this fraction: its times are too long."""

INTRODUCTION = """# Results of `make bench`

Written by `python -m benchmarks all` from runs on one machine, with random weights and few rounds: times, ratios and
memory, not accuracy. Ratios are taken within a round; ranges are minimum and maximum over the rounds. *Other work* is
the fraction of the processors that other programs used meanwhile. `BASELINES` is the baselines' environment;
[`suite/inputs.py`](suite/inputs.py) makes the files in `build/bench`.
"""


@dataclass(frozen=True)
class Record:
    """What is kept of a section. ``template`` is its command with open places, ``command`` the one that ran."""

    failed: bool
    reason: str
    table: str
    template: str
    command: str
    seconds: float
    load: float
    others: float | None
    date: str
    commit: str
    code: str
    machine: dict[str, str]


def results(machine: Mapping[str, str], rows: Sequence[tuple[Section, Record | None]]) -> str:
    """The whole file."""
    headings = ["section", "state", "seconds", "load before", "other work", "date", "commit"]
    states = [[section.title, *(_state(record) if record else ["not measured", *[""] * 5])] for section, record in rows]
    lines = [INTRODUCTION, markdown_table(["machine", ""], machine.items()), "", markdown_table(headings, states)]
    for section, record in rows:
        if record:
            lines += ["", f"## {section.title}", "", section.question, "", "```sh", record.command, "```", ""]
            if (record.others or 0) > NOISY:
                others = percent(record.others)
                lines += [f"**Not a quiet machine**: {others} of the processors were busy with other work.", ""]
            lines += [f"**Failed**: {record.reason}"] if record.failed else below(record.table)
    return "\n".join(lines) + "\n"


def _state(record: Record) -> list[str]:
    """A section's cells in the table of all sections."""
    status = "**failed**" if record.failed else "measured"
    numbers = [f"{record.seconds:.0f}", f"{record.load:.2f}", percent(record.others)]
    return [status, *numbers, record.date, f"`{record.commit}`"]


def percent(fraction: float | None) -> str:
    """A fraction in percent."""
    return "unknown" if fraction is None else f"{fraction:.0%}"


def below(table: str) -> Iterator[str]:
    """A benchmark's own Markdown as part of a section: without its title, and its headings one level down."""
    lines = table.strip().splitlines()
    if lines[0].startswith("# "):
        lines = "\n".join(lines[1:]).strip().splitlines()
    for line in lines:
        yield f"#{line}" if line.startswith("#") else line
