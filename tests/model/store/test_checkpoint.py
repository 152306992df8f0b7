"""One file holds everything, gives the same bits back, and whatever is wrong with it is one clear error."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import header_length, rewritten
from safetensors.torch import save_file
from tiny_model import product_image, tiny_base, tiny_checkpoint, tiny_config, tiny_expert

from moleflow.model.detector import Detector
from moleflow.model.errors import (
    BackboneError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    UnknownTaskError,
)
from moleflow.model.store.checkpoint import FORMAT_VERSION, Checkpoint, write_checkpoint
from moleflow.model.store.sections import digest_tensors

NAMES = ("bolt", "nut", "gear")

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
"""Of a checkpoint's header and tensors, in place."""


def section_of(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def test_what_was_saved_is_loaded_to_the_bit(checkpoint: Checkpoint) -> None:
    config = checkpoint.header.config
    base, expert = checkpoint.base(), checkpoint.product(1).expert
    for loaded, original in ((base, tiny_base(config)), (expert, tiny_expert(config, 101))):
        state = original.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_copy_predicts_the_same_bits(checkpoint: Checkpoint, detector: Detector, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    write_checkpoint(copy, checkpoint.header, {name: checkpoint.section(name) for name in checkpoint.header.digests()})
    images = [product_image(kind, 70) for kind in range(3)]
    again = Detector.load(copy, device="cpu", precision="fp32").predict(images)
    for one, other in zip(detector.predict(images), again, strict=True):
        assert one.score == other.score
        assert one.candidates == other.candidates
        assert (one.grid_map == other.grid_map).all()


def test_the_header_tells_configuration_preprocessing_and_tasks_in_order(checkpoint: Checkpoint) -> None:
    header = Checkpoint.open(checkpoint.path).header
    assert header.format_version == FORMAT_VERSION == 5
    assert header.config == tiny_config()
    assert header.preprocessing.mean == (0.5, 0.45, 0.4)
    assert [task.name for task in header.tasks] == list(NAMES)
    assert header.task("nut").index == 1
    with pytest.raises(UnknownTaskError, match="No product named 'screw' was learned; learned: bolt, nut, gear"):
        header.task("screw")


def test_the_digest_of_a_checkpoint_changes_with_what_it_holds(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert Checkpoint.open(checkpoint.path).info == checkpoint.info
    other = tiny_checkpoint(tmp_path / "factory.safetensors", names=("bolt", "nut"))
    assert other.info.name == checkpoint.info.name
    assert other.info.digest != checkpoint.info.digest


def test_the_sizes_of_the_sections_add_up_to_the_file(checkpoint: Checkpoint) -> None:
    sizes = checkpoint.section_bytes()
    assert set(sizes) == set(checkpoint.header.digests())
    data = checkpoint.path.read_bytes()
    assert sum(sizes.values()) == len(data) - 8 - header_length(data)


def test_loading_needs_no_weights_but_those_in_the_file(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moleflow.model.features.backbone._read_state", lambda path: pytest.fail("read a weight file"))
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    Detector.load(checkpoint.path, device="cpu")


def test_no_pickle_is_ever_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    Detector.load(checkpoint.path, device="cpu")
    (tmp_path / "factory.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(CheckpointFormatError):
        Checkpoint.open(tmp_path / "factory.safetensors")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x89PNG\r\n", b"no", bytes(1000)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="not a complete safetensors file"):
        Checkpoint.open(tmp_path / "other")


def test_a_path_without_a_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="train one with `moleflow train DATA"):
        Checkpoint.open(tmp_path / "none.safetensors")


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="is a folder; name the checkpoint's file"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata=metadata)
    with pytest.raises(CheckpointFormatError, match="is a safetensors file but not a MoLE-Flow checkpoint"):
        Checkpoint.open(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 6, "4", None])
def test_an_unknown_format_version_is_refused_with_both_versions(
    checkpoint: Checkpoint, tmp_path: Path, version: object
) -> None:
    path = rewritten(checkpoint.path, tmp_path / "f", lambda document, _: document.update(format_version=version))
    with pytest.raises(
        CheckpointVersionError, match=f"format version {version!r}; this program reads versions 4 and 5"
    ):
        Checkpoint.open(path)


def break_order(document: dict, tensors: dict) -> None:
    document["tasks"].reverse()


def break_names(document: dict, tensors: dict) -> None:
    document["tasks"][1]["name"] = "bolt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.pop("format_version"), "format_version"),
        (lambda d, t: d.pop("tasks"), "tasks"),
        (lambda d, t: d.update(surprise=1), "surprise"),
        (lambda d, t: d["config"]["flow"].update(lora_rank=0), "lora_rank"),
        (break_order, "numbered in order"),
        (break_names, "named once each"),
    ],
)
def test_a_broken_header_is_refused_in_one_line_that_names_the_field(
    checkpoint: Checkpoint, tmp_path: Path, change: Change, message: str
) -> None:
    path = rewritten(checkpoint.path, tmp_path / "f", change)
    with pytest.raises(CheckpointFormatError, match=f"header of .* is broken .*{message}") as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", ["no JSON", "[1, 2]", "3", ""])
def test_a_header_that_is_no_document_is_refused(tmp_path: Path, document: str) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "f", metadata={"moleflow": document})
    with pytest.raises(CheckpointFormatError, match="is broken"):
        Checkpoint.open(tmp_path / "f")


def redigest(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Make the digests those of the changed tensors, as whoever forges a file would."""
    document["base_sha256"] = digest_tensors(section_of(tensors, "base"))
    for index, task in enumerate(document["tasks"]):
        task["profile_sha256"] = digest_tensors(section_of(tensors, f"tasks.{index}.profile"))
        task["sha256"] = digest_tensors(section_of(tensors, f"tasks.{index}.expert"))


def other_width(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    document["config"]["backbone"]["embedding_dim"] = 32


def more_blocks(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    document["config"]["flow"]["coupling_blocks"] = 3


def no_axes(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["tasks.1.profile.prototype.axes"]


def flat_axes(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["tasks.1.profile.prototype.axes"] = tensors["tasks.1.profile.prototype.axes"].flatten()


def stray_tensor(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["tasks.1.expert.surprise"] = torch.zeros(2)


def other_type(document: dict, tensors: dict[str, torch.Tensor]) -> None:
    tensors["base.blocks.0.permutation"] = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("change", [other_width, more_blocks, no_axes, flat_axes, stray_tensor, other_type])
def test_tensors_that_do_not_fit_the_header_are_refused_in_one_line(
    checkpoint: Checkpoint, tmp_path: Path, change: Change
) -> None:
    def forge(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        change(document, tensors)
        redigest(document, tensors)

    path = rewritten(checkpoint.path, tmp_path / "f", forge)
    with pytest.raises(CheckpointFormatError, match="does not fit its configuration") as caught:
        Detector.load(path, device="cpu").predict([product_image(1, 50)], ["nut"])
    assert "\n" not in str(caught.value)


def test_a_section_that_is_missing_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def drop(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("tasks.2.")]:
            del tensors[key]

    with pytest.raises(
        CheckpointFormatError, match=r"'tasks\.2\.expert' of .* tensor 'adapter.gamma_logit' is missing"
    ):
        Checkpoint.open(rewritten(checkpoint.path, tmp_path / "f", drop))


def test_a_backbone_that_timm_does_not_know_asks_for_the_plugin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = rewritten(
        checkpoint.path, tmp_path / "f", lambda d, _: d["config"]["backbone"].update(name="network_of_a_plugin")
    )
    with pytest.raises(BackboneError, match="no model named 'network_of_a_plugin'.*--plugin MODULE"):
        Detector.load(path, device="cpu")


def test_the_digest_of_tensors_depends_on_names_types_shapes_and_bytes() -> None:
    value = torch.arange(4.0)
    variants = [
        {"a": value},
        {"b": value},
        {"a": value.double()},
        {"a": value.view(2, 2)},
        {"a": value + 1},
        {"a": value, "b": torch.empty(0)},
    ]
    assert len({digest_tensors(each) for each in variants}) == len(variants)
    assert digest_tensors({"a": value, "b": value + 1}) == digest_tensors({"b": value + 1, "a": value})
    assert digest_tensors({"a": torch.arange(6.0).view(2, 3).T}) == digest_tensors(
        {"a": torch.arange(6.0).view(2, 3).T.contiguous()}
    )
