"""A learned product as a file of its own, and what the driver keeps beside the checkpoint; without Ray."""

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_checkpoint

from moleflow.cluster.keeper import Keeper, Message
from moleflow.cluster.product_files import open_product, product_bytes
from moleflow.cluster.work import Work
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import remove_products
from moleflow.training.continual.save import LearnedProduct


@pytest.fixture
def whole(tmp_path: Path) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "whole.safetensors")


@pytest.fixture
def nut(whole: Checkpoint) -> bytes:
    """The file of the second product."""
    parts = (whole.section(f"tasks.1.{part}") for part in ("profile", "expert"))
    return product_bytes(LearnedProduct(whole.header.tasks[1], *parts))


def test_a_product_joins_the_checkpoint_with_the_same_bytes(whole: Checkpoint, nut: bytes, tmp_path: Path) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(whole.path.read_bytes())
    old = remove_products(path, ["nut"])
    work = Work(path, "call")
    work.begin()
    product = work.keep("key", nut)
    assert product.info == whole.header.tasks[1]
    work.assemble(old, [product])
    new = Checkpoint.open(path)
    new.verify()
    assert [task.name for task in new.header.tasks] == ["bolt", "gear", "nut"]
    for part in ("profile", "expert"):
        one, other = whole.section(f"tasks.1.{part}"), new.section(f"tasks.2.{part}")
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("damaged", [slice(0, 100), slice(0, -1), None])
def test_a_damaged_file_counts_as_not_learned(nut: bytes, tmp_path: Path, damaged: slice | None) -> None:
    work = Work(tmp_path / "factory.safetensors", "call")
    work.begin()
    assert work.find("key") is None
    path = work.folder / "key.product"
    path.write_bytes(nut)
    assert work.find("key") is not None
    path.write_bytes(nut[:-1] + bytes([nut[-1] ^ 1]) if damaged is None else nut[damaged])
    assert work.find("key") is None
    with pytest.raises(Exception, match="damaged|differs|truncated|complete"):
        open_product(path)


def test_the_same_call_is_known_again_until_it_is_complete(tmp_path: Path) -> None:
    work, same, other = (Work(tmp_path / "new", asked) for asked in ("this", "this", "that"))
    assert not work.begun
    work.begin()
    assert (same.begun, other.begun) == (True, False)
    work.end(complete=False)
    assert same.begun
    work.end(complete=True)
    assert not same.begun
    assert list(tmp_path.iterdir()) == []


def test_states_and_messages_wait_at_the_keeper(tmp_path: Path) -> None:
    keeper, message = Keeper(tmp_path), Message("line", "nut: epoch 1", {})
    assert keeper.find("nut.state") is None
    keeper.keep("nut.state", b"state")
    keeper.say(message)
    assert (keeper.find("nut.state"), keeper.heard(), keeper.heard()) == (b"state", [message], [])
    keeper.forget(["nut.state", "nut.folds"])
    assert keeper.find("nut.state") is None
