"""Content negotiation by the ``Accept`` header (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

__all__ = ["choose_media_type"]


_MAX_HEADER_LENGTH = 2048
"""Ten times what browsers send; parsing that much takes about two milliseconds."""


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str | None:
    """The offered media type with the highest quality, the first one on a tie; ``None`` when none is acceptable.

    Without a header, the first. Malformed media ranges are ignored; an overlong header accepts nothing.
    """
    if accept is not None and len(accept) > _MAX_HEADER_LENGTH:
        return None
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [parsed for part in accept.split(",") if (parsed := _parse(part)) is not None]
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))  # max keeps the first on a tie
    return best if _quality(best, ranges) > 0 else None


def _parse(part: str) -> tuple[str, float] | None:
    """One media range and its quality, 1 by default; ``None`` when malformed."""
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


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of a media type, taken from the most specific range that matches it."""
    for candidate in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == candidate]
        if qualities:
            return max(qualities)
    return 0.0
