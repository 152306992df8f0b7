"""Valid product names, and names that are equal after normalisation."""

import time
import unicodedata
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moleflow.model.errors import UnknownTaskError
from moleflow.model.names import MAX_NAME_BYTES, find_named, product_name, same_name

COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


@dataclass
class Product:
    name: str


@pytest.mark.parametrize(
    "name",
    [
        "bottle",
        "Metal Nut 2",
        "brick-3.1_a",
        COMPOSED,
        "瓶",
        "Ελιά",
        "زجاجة",
        "می\u200cخواهم",
        "🔩",
        "a+b=c",
        "#5 'x' \"y\"",
        "<b>",
        "[red]",
        "50%",
        "=1+1",
        "x" * MAX_NAME_BYTES,
        ".hidden",
        "...",
    ],
)
def test_plain_text_on_one_line_is_a_valid_name(name: str) -> None:
    assert product_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (" ", "white space"),
        (" a", "white space"),
        ("a\u3000", "white space"),
        ("a\u00a0", "white space"),
        ("a\nb", "control"),
        ("a\tb", "control"),
        ("a\0", "control"),
        ("\x1b[31mred", "control"),
        ("a\x7f", "control"),
        ("a\x85b", "control"),
        ("a\u2028b", "line breaks"),
        ("a\u2029b", "line breaks"),
        ("a\u202eb", "invisible"),
        ("a\u2066b", "invisible"),
        ("a\u200bb", "invisible"),
        ("\ufeffa", "invisible"),
        ("a\u00adb", "invisible"),
        ("a\U000e0041", "invisible"),
        ("a\ud800", "surrogates"),
        ("a/b", "path"),
        ("a\\b", "path"),
        (".", "path"),
        ("..", "path"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("x" * 10**6, "1,000,000 characters"),
    ],
)
def test_invisible_or_control_characters_and_paths_are_not_valid_names(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        product_name(name)
    assert str(caught.value).isprintable()


def test_a_name_has_one_normal_form() -> None:
    assert product_name(DECOMPOSED) == product_name(COMPOSED) == COMPOSED
    assert same_name(DECOMPOSED, COMPOSED)
    assert not same_name("Cafe", COMPOSED)
    assert not same_name("a/b", "a/b")


@given(st.text(max_size=40))
def test_normalisation_is_idempotent(name: str) -> None:
    try:
        normal = product_name(name)
    except ValueError:
        return
    assert product_name(normal) == normal == unicodedata.normalize("NFC", name)


def test_a_product_is_found_in_every_unicode_form_of_its_name() -> None:
    products = [Product("bolt"), Product(COMPOSED)]
    assert find_named(DECOMPOSED, products) is find_named(COMPOSED, products) is products[1]
    for name in ("nut", "", "a\nb", "\ud800", "x" * 10**6):
        with pytest.raises(UnknownTaskError, match=f"learned: bolt, {COMPOSED}") as caught:
            find_named(name, products)
        assert len(str(caught.value)) < 500


def test_a_long_name_of_many_accents_is_refused_quickly() -> None:
    # Sorting combining accents takes quadratic time.
    accents = "a" + "\u0301\u0327" * 500_000
    started = time.perf_counter()
    with pytest.raises(ValueError, match="characters"):
        product_name(accents)
    assert time.perf_counter() - started < 5
