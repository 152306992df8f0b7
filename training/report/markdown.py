"""The one writer of Markdown tables."""

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right_from: int | None = None) -> str:
    """A Markdown table without a line break at its end.

    Columns from number ``right_from`` on are aligned to the right. A ``|`` inside a cell is escaped, and line breaks
    become spaces. ``ValueError`` when a row has not as many cells as there are headings.
    """
    lines = [_line(headings)]
    right = len(headings) if right_from is None else right_from
    lines.append("|" + "".join("---|" if column < right else "---:|" for column in range(len(headings))))
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row has {len(row)} cells, but the table {len(headings)} headings: {list(row)}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", r"\|") for cell in cells) + " |"
