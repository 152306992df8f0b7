"""Content negotiation by the ``Accept`` header."""

import pytest

from moleflow.service.api.accept import choose_media_type

OFFERED = ("application/json", "image/png", "application/x-npy")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("application/x-npy", "application/x-npy"),
        ("application/*", "application/json"),
        ("image/png, */*;q=0.1", "image/png"),
        ("image/png;q=0.5, application/json;q=0.4", "image/png"),
        ("image/png;q=0.4, application/json;q=0.5", "application/json"),
        ("image/png, application/json", "application/json"),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("application/problem+json, image/png", "image/png"),
        ("image/png;q=high, application/x-npy", "application/x-npy"),
        ("text/html", None),
        ("image/jpeg", None),
        ("application/json;q=0", None),
        ("nonsense", None),
        ("image/png," * 1000, None),
    ],
)
def test_the_accept_header_selects_the_media_type(accept: str | None, chosen: str | None) -> None:
    assert choose_media_type(accept, OFFERED) == chosen
