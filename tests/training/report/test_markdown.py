"""Tables are the same everywhere, and no cell breaks one."""

import pytest

from moleflow.training.report.markdown import markdown_table


def test_a_table_has_a_line_per_row_and_numbers_to_the_right() -> None:
    assert markdown_table(["name", "ms"], [["a", 1.5], ["b", 2]], right_from=1).splitlines() == [
        "| name | ms |",
        "|---|---:|",
        "| a | 1.5 |",
        "| b | 2 |",
    ]


def test_bars_and_line_breaks_inside_a_cell_stay_inside_it() -> None:
    assert markdown_table(["a"], [["x | y\nz"]]).splitlines()[2:] == [r"| x \| y z |"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, but the table 2 headings"):
        markdown_table(["a", "b"], [["x"]])
