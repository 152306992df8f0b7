"""Unusable values are refused wherever they are read or written, even if the digest is right."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import PLUGIN, product_image, tiny_config, tiny_expert

from moleflow.model.config import BackboneConfig
from moleflow.model.detector import Detector
from moleflow.model.errors import BackboneError, CheckpointError, CheckpointFormatError
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.runtime.soundness import fault_of, not_finite
from moleflow.model.store.checkpoint import Checkpoint, write_checkpoint
from moleflow.model.store.sections import digest_tensors, expert_tensors
from moleflow.model.verdict.results import Failure

NAN, INFINITY = float("nan"), float("inf")


def forged(source: Path, target: Path, key: str, change: Callable[[torch.Tensor], object]) -> Path:
    """A copy of a checkpoint with one tensor changed and all digests updated."""
    document, tensors = json.loads(Checkpoint.open(source).header.model_dump_json()), load_file(source)
    change(tensors[key])

    def digest(section: str) -> str:
        return digest_tensors({k.removeprefix(section): v for k, v in tensors.items() if k.startswith(section)})

    document["backbone_sha256"], document["base_sha256"] = digest("backbone."), digest("base.")
    for index, task in enumerate(document["tasks"]):
        task["profile_sha256"], task["sha256"] = digest(f"tasks.{index}.profile."), digest(f"tasks.{index}.expert.")
    save_file(tensors, target, metadata={"moleflow": json.dumps(document)})
    return target


def first_is(value: float) -> Callable[[torch.Tensor], object]:
    return lambda tensor: tensor.view(-1)[:1].fill_(value)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("backbone.conv1.weight", "backbone"),
        ("base.blocks.0.shift_in.weight", "base"),
        ("tasks.1.profile.prototype.mean", "tasks.1.profile"),
        ("tasks.1.profile.held_out.scores", "tasks.1.profile"),
        ("tasks.1.expert.adapter.beta_logit", "tasks.1.expert"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_a_value_that_is_not_finite_is_refused_with_its_section_and_tensor(
    checkpoint: Checkpoint, tmp_path: Path, key: str, section: str, value: float
) -> None:
    path = forged(checkpoint.path, tmp_path / "f", key, first_is(value))
    with pytest.raises(CheckpointFormatError, match=rf"section '{section}' of .* tensor '.*' has values that are not"):
        Checkpoint.open(path).verify()


def test_an_expert_with_such_values_gives_no_verdict(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = forged(checkpoint.path, tmp_path / "f", "tasks.1.expert.adapter.beta_logit", first_is(NAN))
    detector = Detector.load(path, device="cpu")
    (found,) = detector.predict([product_image(1, 5)], ["nut"])
    assert isinstance(found, Failure)
    assert "not finite" in str(found.error)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("backbone.bn1.running_var", -1.0, "negative values"),
        ("base.blocks.1.channel_scale", 0.0, "not positive"),
        ("base.blocks.0.permutation", 10**6, "is not a permutation"),
        ("base.blocks.0.permutation", -1, "is not a permutation"),
        ("tasks.0.profile.prototype.floor", 0.0, "not positive"),
        ("tasks.0.profile.prototype.variances", -2.0, "not positive"),
    ],
)
def test_an_invalid_value_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, key: str, value: float, fault: str
) -> None:
    path = forged(checkpoint.path, tmp_path / "f", key, first_is(value))
    with pytest.raises(CheckpointFormatError, match=rf"cannot be used: tensor '.*' {fault}|has .*{fault}"):
        Checkpoint.open(path).verify()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_it_is_found_in_every_dtype_at_every_position(dtype: torch.dtype, value: float) -> None:
    for place in (0, 500, 999):
        tensor = torch.randn(10, 100).to(dtype)
        assert not_finite({"a": tensor}) is None
        tensor.view(-1)[place] = value
        assert not_finite({"fine": torch.ones(2), "a": tensor}) == "a"
    assert not_finite({"none": torch.empty(0), "whole": torch.tensor([1])}) is None


def test_unusable_values_are_not_written_and_the_old_file_stays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    sections = {name: checkpoint.stored(name) for name in checkpoint.header.digests()}
    expert = expert_tensors(ProductParts(tiny_expert(tiny_config(), 7)))
    first_is(NAN)(expert["adapter.beta_logit"])
    with pytest.raises(CheckpointError, match=r"was not written: in section 'tasks.1.expert' tensor"):
        write_checkpoint(path, checkpoint.header, sections | {"tasks.1.expert": expert})
    assert path.read_bytes() == checkpoint.path.read_bytes()


def test_backbone_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    import_plugin(str(PLUGIN))
    config = BackboneConfig(name="tiny_backbone", image_size=32, embedding_dim=16)
    state = {key: value.contiguous() for key, value in Backbone.pretrained(config).net.state_dict().items()}
    first_is(NAN)(state["conv1.weight"])
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(BackboneError, match="weights of backbone 'tiny_backbone' have values that are not finite"):
        Backbone.pretrained(config, tmp_path / "weights.safetensors")


def test_trained_tensors_pass_the_checks(checkpoint: Checkpoint) -> None:
    assert all(fault_of(checkpoint.section(name)) is None for name in checkpoint.header.digests())
