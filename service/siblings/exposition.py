"""The metrics of several processes as one text, each sample with the label ``process``."""

from collections.abc import Mapping

__all__ = ["merge"]

_COUNT = (
    "# HELP moleflow_processes processes of the service that answer\n"
    "# TYPE moleflow_processes gauge\n"
    "moleflow_processes {}\n"
)


def merge(texts: Mapping[int, str]) -> str:
    """Texts of the Prometheus text format, by process, as one. Samples of a family stay together, as it demands."""
    families: dict[str, list[str]] = {}
    for process, text in texts.items():
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                key = line.split(" ", 3)[2]
                lines = families.setdefault(key, [])
            if line.startswith("#"):
                if line not in lines:
                    lines.append(line)
            elif line:
                lines.append(_labelled(line, process))
    return _COUNT.format(len(texts)) + "".join(f"{line}\n" for lines in families.values() for line in lines)


def _labelled(sample: str, process: int) -> str:
    """``name{a="b"} 1`` or ``name 1`` with one more label, in front."""
    name, mark, rest = sample.partition("{")
    if mark and " " not in name:
        return f'{name}{{process="{process}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{process="{process}"}} {value}'
