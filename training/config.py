"""How a task is trained: typed, with the method's constants as defaults, and the named presets."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moleflow.model.config import BackboneConfig, FlowConfig, ModelConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.backbone import EMBEDDED_BACKBONE

__all__ = ["NO_CHANGES", "PRESETS", "Preset", "TrainingConfig", "preset"]

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
"""Fields of a configuration that are to be set otherwise: none."""


class TrainingConfig(BaseModel):
    """Loss, schedule and calibration; the defaults are the MAIN configuration (method, section 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(60, ge=1)
    batch_size: int = Field(16, ge=1, description="images a step")
    learning_rate: float = Field(3e-4, gt=0, description="peak, reached after warm-up")
    final_learning_rate: float = Field(0.01, ge=0, le=1, description="end of the cosine, as a share of the peak")
    first_warmup_epochs: float = Field(0, ge=0, description="linear warm-up of the task that learns the base")
    warmup_epochs: float = Field(2, ge=0, description="linear warm-up of later tasks, at most a quarter of the epochs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's usual value; the method names none")
    max_gradient_norm: float = Field(0.5, gt=0)
    tail_weight: float = Field(0.7, ge=0, le=1, description="w, weight of the worst patches in the loss")
    tail_fraction: float = Field(0.02, gt=0, le=1, description="share of an image's patches that are its tail")
    lambda_logdet: float = Field(1e-4, ge=0, description="λ, weight of mean(log|det J|²)")
    folds: int = Field(5, ge=1, description="of the calibration where images are few; 1 holds some out instead")
    cross_fit_below: int = Field(100, ge=0, description="good images under which a product is cross-fitted")
    held_out_fraction: float = Field(0.1, gt=0, lt=1, description="good images kept out of the fit otherwise")
    min_held_out: int = Field(20, ge=2, description="held-out images at least, but never more than a third of all")
    seed: int = Field(0, ge=0, lt=2**63)


class Preset(BaseModel):
    """A named pair of configurations."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    model: ModelConfig
    training: TrainingConfig

    def with_changes(
        self,
        *,
        backbone: Mapping[str, Any] = NO_CHANGES,
        flow: Mapping[str, Any] = NO_CHANGES,
        model: Mapping[str, Any] = NO_CHANGES,
        training: Mapping[str, Any] = NO_CHANGES,
    ) -> Self:
        """The same preset with some fields of its configurations set otherwise, checked.

        ``model`` names fields of the model's configuration itself, such as ``score_top_k``; ``backbone`` and ``flow``
        name fields of these parts of it.

        Raises:
            ConfigurationError: a value that cannot be used.
        """
        try:
            parts = {
                "backbone": BackboneConfig.model_validate({**self.model.backbone.model_dump(), **backbone}),
                "flow": FlowConfig.model_validate({**self.model.flow.model_dump(), **flow}),
            }
            network = ModelConfig.model_validate({**self.model.model_dump(), **parts, **model})
            schedule = TrainingConfig.model_validate({**self.training.model_dump(), **training})
        except ValidationError as error:
            first = error.errors()[0]
            # A check of several fields together has no field of its own; its message names what is wrong.
            field = f"{first['loc'][0]} {first['input']!r}" if first["loc"] else "this configuration"
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{field} cannot be used: {reason}.") from error
        return self.model_copy(update={"model": network, "training": schedule})


PRESETS: dict[str, Preset] = {
    "main": Preset(
        name="main",
        description="the method's MAIN configuration: WideResNet-50-2 at 224 px, 8 + 4 blocks, rank 64, 60 epochs",
        model=ModelConfig(),
        training=TrainingConfig(),
    ),
    # Chosen by defects pasted into held-out good images, see docs/results/hyperparameters.md.
    "fast": Preset(
        name="fast",
        description="WideResNet-50-2 with embeddings whitened for each product: D = 160, rank 16, 8 epochs",
        model=ModelConfig(backbone=BackboneConfig(embedding_dim=160), flow=FlowConfig(adapter="zca", lora_rank=16)),
        training=TrainingConfig(epochs=8, batch_size=8, learning_rate=1e-3, first_warmup_epochs=1, warmup_epochs=1),
    ),
    # Width and rank shrink with the backbone's 40 + 112 channels; a small flow takes a higher peak and a short warm-up.
    "small": Preset(
        name="small",
        description="for CPUs and offline use: the embedded EfficientNet-Lite0, D = 160, rank 16, 12 epochs",
        model=ModelConfig(
            backbone=BackboneConfig(name=EMBEDDED_BACKBONE, embedding_dim=160), flow=FlowConfig(lora_rank=16)
        ),
        training=TrainingConfig(epochs=12, batch_size=8, learning_rate=1e-3, first_warmup_epochs=1, warmup_epochs=1),
    ),
    # What it costs in accuracy is measured in docs/results/scale.md.
    "compact": Preset(
        name="compact",
        description="main with experts of a third of the bytes: rank 16, stored in bfloat16",
        model=ModelConfig(flow=FlowConfig(lora_rank=16), expert_dtype="bfloat16"),
        training=TrainingConfig(),
    ),
}


def preset(name: str) -> Preset:
    """The preset called ``name``; raises ``ConfigurationError`` with the names that there are."""
    if name not in PRESETS:
        raise ConfigurationError(f"preset {name!r} is not known; use one of {', '.join(PRESETS)}.")
    return PRESETS[name]
