"""Learning on two nodes: the same bits as in sequence, whatever is killed, and a bad product fails alone."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_lines import TINY
from forked import Processes, moleflow_code
from tiny_model import write_product
from two_nodes import HEAD, SECOND, Command, TwoNodes

from moleflow.model.store.checkpoint import Checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

EPOCHS = 24
"""Long enough to be killed in between."""

LONG = tuple(EPOCHS if before == "--epochs" else each for before, each in zip(("", *TINY), TINY, strict=False))

PRODUCTS = ("bolt", "nut", "bad", "gear")
"""In order of learning; an image of ``bad`` is cut at first."""


def names(products: tuple[str, ...]) -> list[str]:
    return [word for name in products for word in ("--task", name)]


def records(path: Path, products: tuple[str, ...]) -> dict[str, Any]:
    """What a checkpoint says of the first products in it, with the digests of their sections, but not when."""
    header = Checkpoint.open(path).header
    tasks = [task.model_dump(exclude={"learned_at"}) for task in header.tasks[: len(products)]]
    assert [task["name"] for task in tasks] == [*products]
    return {"tasks": tasks, "base": header.base_sha256, "backbone": header.backbone_sha256}


def begun_on(printed: str, node: str) -> set[str]:
    """The products that are being learned on a node, in the first third of one of their fits."""
    places = dict(re.findall(r"^(\w+): on (\S+)$", printed, re.M))
    epochs = {name: int(epoch) for name, epoch in re.findall(r"^(\w+)(?:, fold .*)?: epoch (\d+)/", printed, re.M)}
    return {name for name, place in places.items() if place == node and 3 <= epochs.get(name, 0) <= EPOCHS // 3}


def continues(printed: str, name: str) -> bool:
    return re.search(rf"^{name}(, fold \d of 2)?: continues after epoch \d+ of {EPOCHS}$", printed, re.M) is not None


class Story(NamedTuple):
    """What happened to one checkpoint, call by call, and how it ended."""

    in_sequence: Path
    checkpoint: Path
    begun: set[str]
    """Products in progress when the driver was killed, in the first call."""
    moved: set[str]
    """Products in progress on the node that was killed, in the second call."""
    second: str
    status: int
    failed: Path
    """The checkpoint after the second call."""
    third: str
    last_status: int


@pytest.fixture(scope="module")
def story(two_nodes: TwoNodes, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The driver is killed, then a node; then the bad product's image is repaired."""
    folder, data = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("data")
    for kind, name in enumerate(PRODUCTS):
        write_product(data, name, kind)
    image = data / "bad" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    alone, areas = folder / "alone.safetensors", folder / "areas.json"
    areas.write_text('{"nut": {"ignore": [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]}}')
    good = tuple(name for name in PRODUCTS if name != "bad")
    done = processes.run(moleflow_code("train", data, "--checkpoint", alone, *names(good), *LONG, "--areas", areas))
    assert done.status == 0, done.stderr
    path = folder / "factory.safetensors"
    options = (*LONG, "--areas", areas, "--ray", two_nodes.address)
    call = ("train", data, "--checkpoint", path, *names(PRODUCTS), *options)

    # As without shared storage: images, states and products travel through Ray.
    first = Command(folder / "first", *call, "--ship-images")
    first.wait_for(lambda printed: bool(begun_on(printed, HEAD) | begun_on(printed, SECOND)))
    begun = begun_on(first.printed, HEAD) | begun_on(first.printed, SECOND)
    first.process.kill()
    first.process.wait()

    second = Command(folder / "second", *call)
    second.wait_for(lambda printed: bool(begun_on(printed, SECOND)))
    moved = begun_on(second.printed, SECOND)
    two_nodes.kill_second()
    status = second.finish()
    two_nodes.replace_second()
    failed = folder / "failed.safetensors"
    failed.write_bytes(path.read_bytes())

    image.write_bytes(whole)
    third = Command(folder / "third", *call)
    last_status = third.finish()
    return Story(alone, path, begun, moved, second.printed, status, failed, third.printed, last_status)


def test_the_bits_are_those_of_learning_in_sequence(story: Story) -> None:
    good = ("bolt", "nut", "gear")
    assert records(story.failed, good) == records(story.in_sequence, good)
    assert [bool(task["learned_area"]) for task in records(story.failed, good)["tasks"]] == [False, True, False]
    Checkpoint.open(story.failed).verify()


def test_a_killed_driver_repeats_nothing_that_is_done(story: Story) -> None:
    assert story.begun
    assert all(continues(story.second, name) for name in story.begun), story.second
    assert "bolt:" not in story.second


def test_the_products_of_a_killed_node_go_on_elsewhere(story: Story) -> None:
    for name in story.moved:
        before, _, after = story.second.rpartition(f"{name}: on {HEAD}\n")
        assert f"{name}: on {SECOND}" in before
        assert continues(after, name), after


def test_a_bad_product_fails_alone_and_is_named(story: Story) -> None:
    assert story.status == 1
    assert "1 of 4 products were not learned; all others are in" in story.second
    assert re.search(r"^error: .*\(bad\) .*3\.png", story.second, re.M)


def test_the_same_call_learns_what_has_failed_and_leaves_nothing_behind(story: Story) -> None:
    assert story.last_status == 0, story.third
    assert "bad: learned from 8 images" in story.third
    assert not re.search("^(bolt|nut|gear):", story.third, re.M)
    assert records(story.checkpoint, ("bolt", "nut", "gear", "bad"))
    beside = sorted(each.name for each in story.checkpoint.parent.iterdir() if each.name.startswith("factory"))
    assert beside == ["factory.safetensors", "factory.safetensors.history.jsonl"]
