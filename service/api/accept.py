"""Which form of the answer a client asks for in its ``Accept`` header (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

__all__ = ["choose_media_type"]


_MAX_CHARACTERS = 2048
"""Of the header: ten times what browsers send, read in about two milliseconds."""


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str | None:
    """The offered media type that the header likes best; the earlier of equals; ``None`` when it accepts none.

    Without a header, the first. Parts that cannot be parsed are passed over; a header of thousands of characters
    accepts none.
    """
    if accept is not None and len(accept) > _MAX_CHARACTERS:
        return None
    if accept is None or not accept.strip():
        return offered[0]
    wishes = [wish for part in accept.split(",") if (wish := _parse(part)) is not None]
    best = max(offered, key=lambda media_type: _quality(media_type, wishes))  # max keeps the first of equals
    return best if _quality(best, wishes) > 0 else None


def _parse(part: str) -> tuple[str, float] | None:
    """One media range and its quality, 1 unless stated."""
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
    return (media_range, quality) if "/" in media_range else None


def _quality(media_type: str, wishes: Sequence[tuple[str, float]]) -> float:
    """How much a media type is liked: the most specific range that covers it decides."""
    for media_range in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        qualities = [quality for wish, quality in wishes if wish == media_range]
        if qualities:
            return max(qualities)
    return 0.0
