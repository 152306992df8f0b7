"""Nothing that one client sends stops the service or changes its results for others.

The hostile images and attacks of ``python -m benchmarks hostile_load``, at small sizes, against a real server. About
twenty seconds on an idle machine.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from running import PATIENCE, Running, run_server
from sample_images import encoded, sample_image

from benchmarks.hostile import connections, requests
from benchmarks.hostile.images import KINDS, MANY_PIXELS, damaged
from benchmarks.hostile.ledger import Ledger
from benchmarks.hostile.target import Attack, Target, attack

SIZE = 60_000
"""Size of a hostile image in bytes."""

DAMAGED = 250
"""Number of valid files to damage."""

CLIENTS = 4
"""Images sent concurrently."""

ANSWERED_OR_REFUSED = {200, 413, 415}

FAMILIES = sorted({kind.split("/")[0] for kind in KINDS})

ATTACKS = sorted({*connections.ATTACKS, *requests.ATTACKS}, key=lambda one: one.__name__)

SHORT_TIMEOUTS: dict[str, Any] = {"upload_timeout_seconds": 1, "header_timeout_seconds": 1, "send_timeout_seconds": 1}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Running]:
    """A server with short timeouts, for all tests of this module."""
    with run_server(max_pixels=1_000_000, max_upload_bytes=2_000_000, **SHORT_TIMEOUTS) as running:
        yield running


@contextmanager
def health_polled(running: Running) -> Iterator[list[int]]:
    """Poll the health routes meanwhile; yields the statuses other than 200."""
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
    """The unexpected statuses, by image name."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = pool.map(lambda image: running.predict(image[1], map_size="model").status_code, images)
        named = dict(zip((name for name, _ in images), statuses, strict=True))
    return {name: status for name, status in named.items() if status not in ANSWERED_OR_REFUSED}


def scores(running: Running) -> list[float]:
    """The scores of good images."""
    images = (encoded(sample_image(spot=spot), kind) for kind in ("PNG", "BMP") for spot in (False, True))
    return [running.predict(image, map="none").json()["score"] for image in images]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_images_are_handled_and_the_next_good_ones_predicted_correctly(attacked: Running, family: str) -> None:
    before = scores(attacked)
    chosen = [kind for kind in KINDS if kind.startswith(f"{family}/") and kind not in MANY_PIXELS]
    with health_polled(attacked) as bad:
        assert send_all(attacked, [(kind, KINDS[kind](SIZE)) for kind in chosen]) == {}
    assert bad == []
    assert scores(attacked) == before


def test_damaged_images_are_handled_and_the_next_good_ones_predicted_correctly(attacked: Running) -> None:
    before = scores(attacked)
    with health_polled(attacked) as bad:
        assert send_all(attacked, [damaged(seed) for seed in range(DAMAGED)]) == {}
    assert bad == []
    assert scores(attacked) == before


@pytest.mark.parametrize("chosen", ATTACKS, ids=lambda one: one.__name__)
def test_an_attack_ends_as_documented_and_affects_nobody_else(attacked: Running, chosen: Attack) -> None:
    image, large_image = encoded(sample_image()), encoded(sample_image(900, 600))
    target = Target(
        port=attacked.port,
        image=image,
        large_image=large_image,
        patience=PATIENCE,
        stall_seconds=2,
        closing_seconds=30,
        max_upload_bytes=2_000_000,
    )
    ledger, chance = Ledger(), random.Random(0)

    async def attack_thrice() -> None:
        for _ in range(3):
            await attack(chosen, target, ledger, chance)

    with health_polled(attacked) as bad:
        asyncio.run(attack_thrice())
    assert ledger.troubles == []
    assert bad == []
    assert attacked.predict(image).status_code == 200
