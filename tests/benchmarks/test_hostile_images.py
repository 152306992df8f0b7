"""The makers of hostile images, and the gates on the cost of decoding them."""

from typing import Any

import pytest

from benchmarks.hostile.decode_cost import MOST_BYTES, MOST_SECONDS, judge, markdown
from benchmarks.hostile.images import KINDS, MANY_PIXELS, damaged, good_images
from moleflow.model.images.decode import FORMATS, image_format, open_rgb

SIZE = 100_000


@pytest.mark.parametrize("name", good_images())
def test_the_files_to_be_damaged_are_good(name: str) -> None:
    assert open_rgb(good_images()[name]).shape in {(48, 72, 3), (72, 48, 3)}


def test_damages_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert damaged(7) == damaged(7)
    assert len({damaged(seed)[1] for seed in range(50)}) == 50


def test_there_are_kinds_of_every_format_and_each_announces_it() -> None:
    found = {name: image_format(make(SIZE)) for name, make in KINDS.items() if name not in MANY_PIXELS}
    assert {kind.lower() for kind in filter(None, found.values())} == {name.lower() for name in FORMATS}
    assert {name: kind for name, kind in found.items() if name.split("/")[0] != str(kind).lower()} == {}


def row(kind: str, megabytes: float, seconds: float = 0.0, size: int = 0, outcome: str = "64×64") -> dict[str, Any]:
    return {"kind": kind, "megabytes": megabytes, "seconds": seconds, "bytes": size, "outcome": outcome}


@pytest.mark.parametrize(
    ("rows", "broken"),
    [
        ([row("a", 1, 0.1), row("a", 8, 0.8)], set()),
        ([row("a", 1, MOST_SECONDS + 0.1)], {"processor seconds of one upload"}),
        ([row("a", 1, size=MOST_BYTES + 1)], {"growth of memory by one upload"}),
        ([row("a", 1, outcome="endless")], {"decodings that did not end"}),
        ([row("a", 8, 0.1), row("a", 32, 1.6)], {"cost of four times the bytes"}),
        ([row("a", 8, 0.4), row("a", 32, 1.6)], set()),
    ],
)
def test_the_gates_tell_what_is_too_much(rows: list[dict[str, Any]], broken: set[str]) -> None:
    gates = judge(rows)
    assert {gate.name for gate in gates if not gate.passed} == broken
    assert all(row["outcome"] in markdown(rows) for row in rows)
