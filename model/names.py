"""Valid product names, and when two names are equal.

Names come from folders, commands, requests and checkpoints, and go to terminals, logs, HTTP headers, metric labels,
HTML and file names. They are stored in Unicode normal form C, so that a composed and a decomposed ``é`` are the same
name (Unicode Standard Annex #15).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator

from moleflow.model.errors import UnknownTaskError

__all__ = ["MAX_NAME_BYTES", "ProductName", "find_named", "product_name", "same_name"]

MAX_NAME_BYTES = 255
"""Longest name in UTF-8, as for a folder on common file systems."""

_MOST_CHARACTERS = 4 * MAX_NAME_BYTES
"""Longer names are refused unnormalised: normalisation takes quadratic time in the number of combining accents."""

_KEPT_FORMATS = "\u200c\u200d"
"""Zero-width (non-)joiners, which Persian, Hindi and others need. All other invisible characters are refused."""

_REFUSED = {
    "Cc": "control characters",
    "Cf": "invisible characters",
    "Cs": "lone surrogates",
    "Zl": "line breaks",
    "Zp": "line breaks",
}
"""Unicode categories not allowed in names: they hide or reorder text, control terminals, or break lines."""


def product_name(name: str) -> str:
    """The name in normal form C. Raises ``ValueError`` if it is not a valid product name."""
    if len(name) > _MOST_CHARACTERS:
        raise ValueError(f"the name has {len(name):,} characters; at most {MAX_NAME_BYTES} bytes are allowed")
    found = {unicodedata.category(each) for each in name if each not in _KEPT_FORMATS} & _REFUSED.keys()
    if found:
        raise ValueError(f"{name!r} contains {_REFUSED[min(found)]}; a name must be plain text on one line")
    name = unicodedata.normalize("NFC", name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{name!r} has {len(name.encode())} bytes in UTF-8; at most {MAX_NAME_BYTES} are allowed")
    if not name or name != name.strip():
        raise ValueError(f"{name!r} is empty, or starts or ends with white space")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is a path; a name is that of a single folder")
    return name


ProductName = Annotated[str, AfterValidator(product_name)]
"""A model field that holds a product name."""


def same_name(one: str, other: str) -> bool:
    """Whether two names are equal after normalisation; an invalid name equals nothing."""
    try:
        return product_name(one) == product_name(other)
    except ValueError:
        return False


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def find_named(name: str, products: Iterable[_N]) -> _N:
    """The product called ``name``, in any normal form; ``products`` carry normalised names.

    Raises:
        UnknownTaskError: no product has that name.
    """
    known: Sequence[_N] = tuple(products)
    try:
        wanted = product_name(name)
    except ValueError:
        wanted = ""
    for product in known:
        if product.name == wanted:
            return product
    raise UnknownTaskError(name, tuple(product.name for product in known))
