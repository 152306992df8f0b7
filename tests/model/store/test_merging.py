"""Products that were learned apart on one base are pooled in one file, bit for bit."""

import resource
from pathlib import Path

import pytest
from tiny_model import tiny_checkpoint, tiny_config

from moleflow.model.errors import CheckpointError, ConfigurationError, TaskError
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import hide_products, remove_products, rename_product, rewrite
from moleflow.model.store.merging import merge_checkpoints
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.area import Outlines

ALL = ("bolt", "nut", "gear", "nail")


def content(checkpoint: Checkpoint, name: str) -> list[bytes]:
    """The bytes of a product's sections, tensor by tensor."""
    index = checkpoint.header.task(name).index
    parts = [checkpoint.section(f"tasks.{index}.{part}") for part in ("profile", "expert")]
    return [key.encode() + value.numpy().tobytes() for part in parts for key, value in sorted(part.items())]


def named(checkpoint: Checkpoint) -> list[str]:
    return [task.name for task in checkpoint.header.tasks]


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    """Two sites that both have bolt, with the base; one learned nut, the other gear and nail."""
    paths = [tiny_checkpoint(tmp_path / f"{name}.safetensors", ALL).path for name in ("north", "south")]
    remove_products(paths[0], ["gear", "nail"])
    remove_products(paths[1], ["nut"])
    return paths


def test_all_products_are_pooled_in_order_bit_for_bit(sites: list[Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in sites]
    merged = merge_checkpoints([sites[1], sites[0]], tmp_path / "all.safetensors")
    merged.checkpoint.verify()
    assert named(merged.checkpoint) == ["bolt", "gear", "nail", "nut"]
    assert merged.shared == ["bolt"]
    whole = tiny_checkpoint(tmp_path / "whole.safetensors", ALL)
    for name in ALL:
        assert content(merged.checkpoint, name) == content(whole, name)
    for part in ("base_sha256", "backbone_sha256", "config", "preprocessing"):
        assert getattr(merged.checkpoint.header, part) == getattr(whole.header, part)
    assert [path.read_bytes() for path in sites] == before


def test_the_output_may_be_one_of_the_files_and_no_other(sites: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something")
    with pytest.raises(ConfigurationError, match="exists and is none of the files to merge"):
        merge_checkpoints(sites, other)
    assert other.read_bytes() == b"something"
    merge_checkpoints(sites, sites[0])
    assert named(Checkpoint.open(sites[0])) == [*ALL]


def test_products_of_one_name_that_differ_are_refused_with_all_names(sites: list[Path], tmp_path: Path) -> None:
    rename_product(sites[1], "gear", "nut")
    with pytest.raises(TaskError, match=r"'nut' of south.safetensors differs"):
        merge_checkpoints(sites, tmp_path / "all.safetensors")
    rename_product(sites[1], "bolt", "screw")
    with pytest.raises(TaskError, match=r"'screw' of south.safetensors is 'bolt' of another file; 'nut' of south"):
        merge_checkpoints(sites, tmp_path / "all.safetensors")
    assert not (tmp_path / "all.safetensors").exists()


def test_the_first_product_may_have_been_recalibrated_at_one_site(sites: list[Path], tmp_path: Path) -> None:
    south = Checkpoint.open(sites[1])
    profile = {key: value.clone() for key, value in south.section("tasks.0.profile").items()}
    profile["held_out.scores"] += 1
    digest = digest_tensors(profile)
    tasks = [south.header.tasks[0].model_copy(update={"profile_sha256": digest}), *south.header.tasks[1:]]
    rewrite(south, tasks, {"tasks.0.profile": profile})
    merged = merge_checkpoints(sites, tmp_path / "all.safetensors")
    assert merged.recalibrated == ["bolt"]
    assert content(merged.checkpoint, "bolt") == content(Checkpoint.open(sites[0]), "bolt")


def test_a_product_with_another_area_is_kept_as_the_first_file_has_it_and_reported(
    sites: list[Path], tmp_path: Path
) -> None:
    set_area(sites[1], "bolt", Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),)))
    merged = merge_checkpoints(sites, tmp_path / "all.safetensors")
    assert (merged.shared, merged.recalibrated) == ([], ["bolt"])
    assert merged.checkpoint.header.tasks[0].area is None


def test_another_base_is_refused(sites: list[Path], tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other.safetensors", ("screw",), tiny_config(dim=12))
    with pytest.raises(CheckpointError, match=r"have another base \(digests"):
        merge_checkpoints([sites[0], other.path], tmp_path / "all.safetensors")


def test_a_hidden_product_stays_as_the_first_file_has_it(sites: list[Path], tmp_path: Path) -> None:
    hide_products(sites[0], ["bolt"])
    merged = merge_checkpoints(sites, tmp_path / "all.safetensors")
    assert [task.name for task in merged.checkpoint.header.visible] == ["nut", "gear", "nail"]


def test_more_files_than_may_be_open_are_refused_with_the_limit(
    sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    with pytest.raises(ConfigurationError, match="allows 64; raise the limit"):
        merge_checkpoints(sites, tmp_path / "all.safetensors")
