"""File names are displayed as valid text on one line, and sorted in natural order."""

import os
from pathlib import Path

from moleflow.model.files.file_names import as_line, as_text, natural_key


def test_bytes_that_are_not_text_are_escaped() -> None:
    assert as_text(Path(os.fsdecode(b"a/\xff\xc3\xa9.png"))) == "a/\\xffé.png"
    assert as_text("half \ud800") == r"half \ud800"


def test_control_characters_are_escaped_and_letters_are_not() -> None:
    assert as_line("a\nb\x1b[31m\u2028\u202f日本.png") == "a\\nb\\x1b[31m\\u2028\u202f日本.png"


def test_natural_order_sorts_numbers_by_value_and_ignores_case() -> None:
    names = ["10.png", "9.png", "B2", "a10", "a9", "b1", "\u00b2.png"]
    assert sorted(names, key=natural_key) == ["9.png", "10.png", "a9", "a10", "b1", "B2", "\u00b2.png"]
