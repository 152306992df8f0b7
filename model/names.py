"""What a product may be called, and when two names are the same. One rule for training, reading and looking up.

A name comes from a folder, a command, a request or a checkpoint, and goes to terminals, logs, HTTP headers, labels of
metrics, HTML and file names. It is kept in Unicode's normal form C: ``é`` is one character, or an ``e`` and an accent,
by which program wrote it, and both are one name (Unicode Standard Annex #15).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator

from moleflow.model.errors import UnknownTaskError

__all__ = ["MAX_NAME_BYTES", "ProductName", "find_named", "product_name", "same_name"]

MAX_NAME_BYTES = 255
"""The longest name in UTF-8: that of a folder on common file systems, which is where names come from."""

_MOST_CHARACTERS = 4 * MAX_NAME_BYTES
"""Longer ones are refused as they are: normalising takes a time quadratic in the accents on one letter."""

_KEPT_FORMATS = "\u200c\u200d"
"""The zero-width joiners: Persian, Hindi and others spell with them. All other invisible characters are refused."""

_REFUSED = {
    "Cc": "control characters",
    "Cf": "invisible characters",
    "Cs": "halves of characters (lone surrogates)",
    "Zl": "line breaks",
    "Zp": "line breaks",
}
"""Unicode's general categories that a name has none of: they hide or reorder text, drive terminals, or break lines."""


def product_name(name: str) -> str:
    """The name in its normal form. ``ValueError`` says why it cannot be a product's."""
    if len(name) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(name):,} characters; a name has at most {MAX_NAME_BYTES} bytes")
    found = {unicodedata.category(each) for each in name if each not in _KEPT_FORMATS} & _REFUSED.keys()
    if found:
        raise ValueError(f"{name!r} has {_REFUSED[min(found)]}; a name is plain text in one line")
    name = unicodedata.normalize("NFC", name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{name!r} has {len(name.encode())} bytes in UTF-8; a name has at most {MAX_NAME_BYTES}")
    if not name or name != name.strip():
        raise ValueError(f"{name!r} is empty, or begins or ends with white space")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is a path; a name is that of one folder")
    return name


ProductName = Annotated[str, AfterValidator(product_name)]
"""A field that holds a product's name."""


def same_name(one: str, other: str) -> bool:
    """Whether both are the same product's name, however they are spelled; what cannot be a name is like no other."""
    try:
        return product_name(one) == product_name(other)
    except ValueError:
        return False


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def find_named(name: str, products: Iterable[_N]) -> _N:
    """The one of ``products``, whose names are in normal form, that is called ``name`` in any form.

    Raises:
        UnknownTaskError: there is none.
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
