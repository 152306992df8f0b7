"""Nothing that one client sends stops, blinds or fools the service for the others.

The hostile images and attacks of ``python -m benchmarks hostile_load``, at small sizes, against a real server. About
twenty seconds on an idle machine.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from rgb_images import encoded, rgb_image
from running import PATIENCE, Running, run_server

from benchmarks.hostile import connections, requests
from benchmarks.hostile.images import KINDS, MANY_PIXELS, damaged
from benchmarks.hostile.ledger import Ledger
from benchmarks.hostile.target import Attack, Target, attack

SIZE = 60_000
"""Bytes of a hostile image here."""

DAMAGED = 250
"""Good files that are damaged, each in another way."""

CLIENTS = 4
"""At a time."""

ANSWERED_OR_REFUSED = {200, 413, 415}

FAMILIES = sorted({kind.split("/")[0] for kind in KINDS})

ATTACKS = sorted({*connections.ATTACKS, *requests.ATTACKS}, key=lambda one: one.__name__)

LITTLE_PATIENCE = {"upload_timeout_seconds": 1, "header_timeout_seconds": 1, "send_timeout_seconds": 1}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Running]:
    """A server with room for the images here and little patience, for all tests of this module."""
    with run_server(max_pixels=1_000_000, max_upload_bytes=2_000_000, **LITTLE_PATIENCE) as running:
        yield running


@contextmanager
def health_watched(running: Running) -> Iterator[list[int]]:
    """Ask for health all along; the statuses that were not 200."""
    bad, ended = list[int](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for path in ("/health/live", "/health/ready", "/metrics"):
                status = running.client.get(path).status_code
                if status != 200:
                    bad.append(status)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield bad
    finally:
        ended.set()
        thread.join(PATIENCE)


def send_all(running: Running, images: list[tuple[str, bytes]]) -> dict[str, int]:
    """The statuses that are neither an answer nor a refusal, by the image's name."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = pool.map(lambda image: running.predict(image[1], map_size="model").status_code, images)
        named = dict(zip((name for name, _ in images), statuses, strict=True))
    return {name: status for name, status in named.items() if status not in ANSWERED_OR_REFUSED}


def scores(running: Running) -> list[float]:
    """What the service says of good images."""
    images = (encoded(rgb_image(spot=spot), kind) for kind in ("PNG", "BMP") for spot in (False, True))
    return [running.predict(image, map="none").json()["score"] for image in images]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_images_are_answered_or_refused_and_the_next_good_ones_rightly(attacked: Running, family: str) -> None:
    before = scores(attacked)
    chosen = [kind for kind in KINDS if kind.startswith(f"{family}/") and kind not in MANY_PIXELS]
    with health_watched(attacked) as bad:
        assert send_all(attacked, [(kind, KINDS[kind](SIZE)) for kind in chosen]) == {}
    assert bad == []
    assert scores(attacked) == before


def test_damaged_images_are_answered_or_refused_and_the_next_good_ones_rightly(attacked: Running) -> None:
    before = scores(attacked)
    with health_watched(attacked) as bad:
        assert send_all(attacked, [damaged(seed) for seed in range(DAMAGED)]) == {}
    assert bad == []
    assert scores(attacked) == before


@pytest.mark.parametrize("chosen", ATTACKS, ids=lambda one: one.__name__)
def test_an_attack_ends_as_documented_and_harms_nobody(attacked: Running, chosen: Attack) -> None:
    image = encoded(rgb_image())
    target = Target(
        port=attacked.port,
        image=image,
        large_image=encoded(rgb_image(900, 600)),
        patience=PATIENCE,
        stall_seconds=2,
        closing_seconds=30,
        max_upload_bytes=2_000_000,
    )
    ledger, chance = Ledger(), random.Random(0)

    async def attack_thrice() -> None:
        for _ in range(3):
            await attack(chosen, target, ledger, chance)

    with health_watched(attacked) as bad:
        asyncio.run(attack_thrice())
    assert ledger.troubles == []
    assert bad == []
    assert attacked.predict(image).status_code == 200
