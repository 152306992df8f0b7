"""Training configuration and the named presets."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moleflow.model.config import BackboneConfig, FlowConfig, MemoryConfig, ModelConfig, ScoringConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.backbone import EMBEDDED_BACKBONE
from moleflow.model.verdict.results import MAX_COPIES

__all__ = ["DEFAULT_PRESET", "FUSED_CAP", "NO_CHANGES", "PRESETS", "Preset", "TrainingConfig", "preset"]

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
"""No overrides."""


class TrainingConfig(BaseModel):
    """Loss, schedule and calibration; the defaults are the ``main`` preset (method, section 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(60, ge=1)
    max_steps: int | None = Field(None, ge=1, description="most steps of a fit, which shorten its schedule; null: any")
    batch_size: int = Field(16, ge=1, description="images per step")
    learning_rate: float = Field(3e-4, gt=0, description="peak, reached after warm-up")
    final_learning_rate: float = Field(0.01, ge=0, le=1, description="end of cosine decay, as a fraction of the peak")
    first_warmup_epochs: float = Field(0, ge=0, description="linear warm-up of the task that trains the base")
    warmup_epochs: float = Field(2, ge=0, description="linear warm-up of later tasks, at most a quarter of the epochs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's default; not specified by the method")
    max_gradient_norm: float = Field(0.5, gt=0)
    tail_weight: float = Field(0.7, ge=0, le=1, description="w, weight of the worst patches in the loss")
    tail_fraction: float = Field(0.02, gt=0, le=1, description="fraction of an image's patches in its tail")
    lambda_logdet: float = Field(1e-4, ge=0, description="λ, weight of mean(log|det J|²)")
    folds: int = Field(5, ge=1, description="cross-fitting folds for small products; 1 uses a held-out split instead")
    cross_fit_below: int = Field(100, ge=0, description="products with fewer good images are cross-fitted")
    held_out_fraction: float = Field(0.1, gt=0, lt=1, description="fraction held out without cross-fitting")
    min_held_out: int = Field(20, ge=2, description="fewest held-out images, but never more than a third of all")
    altered_copies: int = Field(
        1, ge=0, le=MAX_COPIES, description="altered copies of each held-out image that calibrate beside it"
    )
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
        """The preset with some fields overridden, validated.

        ``model`` overrides fields of ``ModelConfig`` itself, such as ``score_top_k``; ``backbone`` and ``flow`` those
        of its parts. A number of ``epochs`` is taken at its word: it lifts ``max_steps``.

        Raises:
            ConfigurationError: a value is invalid.
        """
        try:
            parts = {
                "backbone": BackboneConfig.model_validate({**self.model.backbone.model_dump(), **backbone}),
                "flow": FlowConfig.model_validate({**self.model.flow.model_dump(), **flow}),
            }
            network = ModelConfig.model_validate({**self.model.model_dump(), **parts, **model})
            unlimited = {"max_steps": None} if "epochs" in training else {}
            schedule = TrainingConfig.model_validate({**self.training.model_dump(), **unlimited, **training})
        except ValidationError as error:
            first = error.errors()[0]
            # Errors of model validators have no field.
            field = f"{first['loc'][0]} {first['input']!r}" if first["loc"] else "this configuration"
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{field} cannot be used: {reason}.") from error
        return self.model_copy(update={"model": network, "training": schedule})


FUSED_CAP = 4.0
"""Cap of the flow's map beside a memory, in standard deviations of good patches (docs/results/scoring.md)."""

_SHORT = TrainingConfig(
    epochs=8, max_steps=120, batch_size=8, learning_rate=2e-3, first_warmup_epochs=1, warmup_epochs=1, folds=2
)
"""A small flow learns fast, and the memory beside it needs no long one (docs/results/hyperparameters.md)."""

PRESETS: dict[str, Preset] = {
    "main": Preset(
        name="main",
        description="the method's full configuration: WideResNet-50-2 at 224 px, 8 + 4 blocks, rank 64, 60 epochs",
        model=ModelConfig(),
        training=TrainingConfig(),
    ),
    # Chosen with pseudo-defects on held-out good images, see docs/results/hyperparameters.md.
    "fast": Preset(
        name="fast",
        description="WideResNet-50-2 with ZCA whitening and a memory per product: D = 160, rank 16, up to 120 steps",
        model=ModelConfig(
            backbone=BackboneConfig(embedding_dim=160),
            flow=FlowConfig(adapter="zca", lora_rank=16),
            scoring=ScoringConfig(cap=FUSED_CAP, memory=MemoryConfig()),
        ),
        training=_SHORT,
    ),
    # D and rank match the backbone's 40 + 112 channels; a small flow allows a higher learning rate, less warm-up.
    "small": Preset(
        name="small",
        description="for CPUs: embedded EfficientNet-Lite0 and a memory per product, D = 160, rank 16, 120 steps",
        model=ModelConfig(
            backbone=BackboneConfig(name=EMBEDDED_BACKBONE, embedding_dim=160),
            flow=FlowConfig(lora_rank=16),
            scoring=ScoringConfig(cap=FUSED_CAP, memory=MemoryConfig(dim=128)),
        ),
        training=_SHORT,
    ),
    # Its effect on accuracy is measured in docs/results/scale.md.
    "compact": Preset(
        name="compact",
        description="main with smaller experts, rank 16, stored in bfloat16, and a small memory",
        model=ModelConfig(
            flow=FlowConfig(lora_rank=16),
            scoring=ScoringConfig(cap=FUSED_CAP, memory=MemoryConfig(prototypes=2000, pooled=0, dim=128)),
            expert_dtype="bfloat16",
        ),
        training=TrainingConfig(),
    ),
}


DEFAULT_PRESET = "fast"
"""What ``moleflow train`` takes: minutes on a CPU, and more accurate than an hour of ``main`` on three products."""


def preset(name: str) -> Preset:
    """The preset called ``name``; ``ConfigurationError`` if there is none."""
    if name not in PRESETS:
        raise ConfigurationError(f"preset {name!r} is not known; use one of {', '.join(PRESETS)}.")
    return PRESETS[name]
