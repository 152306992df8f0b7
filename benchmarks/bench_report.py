"""``benchmarks/RESULTS.md``, from what is known of each section."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench_sections import Section

__all__ = ["Record", "results"]

NOISY = 0.1
"""Where other work takes more of the processors than this, a section says so: times are too long, and ratios unsure."""

INTRODUCTION = """# Results of `make bench`

Written by [`bench.py`](bench.py) from runs on one machine, with random weights and few rounds: times, ratios, memory,
not accuracy. Ratios are taken within a round; ranges are the least and the greatest of the rounds. *Other work* is the
share of the processors that foreign programs took meanwhile. `PEERS` is the neighbours' environment; what lies in
`build/bench` is made by `bench_inputs.py`.
"""


@dataclass(frozen=True)
class Record:
    """What is kept of a section. ``template`` is its command with its places open; ``command`` the one that was run."""

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
    lines = [INTRODUCTION, "| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())]
    lines += ["", "| section | state | seconds | load before | other work | date | commit |", "|" + "---|" * 7]
    for section, record in rows:
        lines.append(f"| {section.title} | {' | '.join(state(record) if record else ['not measured', *[''] * 5])} |")
    for section, record in rows:
        if record:
            lines += ["", f"## {section.title}", "", section.question, "", "```sh", record.command, "```", ""]
            if (record.others or 0) > NOISY:
                share = percent(record.others)
                lines += [f"**Not a quiet machine**: {share} of the processors were busy with other work.", ""]
            lines += [f"**Failed**: {record.reason}"] if record.failed else below(record.table)
    return "\n".join(lines) + "\n"


def state(record: Record) -> list[str]:
    """A section's cells in the table of all."""
    status = "**failed**" if record.failed else "measured"
    numbers = [f"{record.seconds:.0f}", f"{record.load:.2f}", percent(record.others)]
    return [status, *numbers, record.date, f"`{record.commit}`"]


def percent(share: float | None) -> str:
    """A share in words."""
    return "unknown" if share is None else f"{share:.0%}"


def below(table: str) -> Iterator[str]:
    """A benchmark's own Markdown as part of a section: without its title, and its headings one level down."""
    lines = table.strip().splitlines()
    if lines[0].startswith("# "):
        lines = "\n".join(lines[1:]).strip().splitlines()
    for line in lines:
        yield f"#{line}" if line.startswith("#") else line
