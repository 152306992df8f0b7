"""The network's configuration: stored in the checkpoint, shared by training and serving.

A checkpoint may come from anyone, so every number has an upper limit: far above what the method uses, low enough that
no header can exhaust memory or time. ``activation_bytes`` bounds what one image takes; the file's size bounds the
weights (``moleflow.model.store.layout``).
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "DEFAULT_UNKNOWN_LIMIT",
    "Adapter",
    "BackboneConfig",
    "Engine",
    "ExpertDtype",
    "FlowConfig",
    "MemoryConfig",
    "ModelConfig",
    "Precision",
    "RouterConfig",
    "ScoringConfig",
]

Adapter = Literal["whitening", "soft_ln", "zca"]
"""Input adapter of each task (``moleflow.model.flow.adapters``)."""

Subnet = Literal["lora", "linear"]
"""A task's part of a MoLE block: low-rank updates of shared layers, or dense layers of its own."""

Sharing = Literal["frozen", "sequential", "separated"]
"""The base: trained with the first task and then frozen; trained further with every task, without protecting earlier
experts; or a separate one per task."""

ExpertDtype = Literal["float32", "bfloat16"]
"""Storage type of experts; they are trained, and merged into the base, in float32."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Engine = Literal["auto", "torch", "openvino"]
"""Type of matrix products; ``auto`` depends on the device. NLL, log-determinant and router always use float32."""

DEFAULT_UNKNOWN_LIMIT = 0.7
"""Default upper limit of the novelty score (``moleflow.model.routing.novelty``) of an image of a known product: the
99 % quantile over augmented *training* images, rounded (measured, with its effect on test images, by
``python -m benchmarks unknown_verdicts``)."""

MAX_ACTIVATION_BYTES = 2 * 2**30
"""Most memory that the activations of one image may take, as ``activation_bytes`` estimates it."""

_BACKBONE_BYTES = 200
"""Peak activation bytes of a backbone per input pixel: WideResNet-50-2 holds three maps of 256 channels at stride 4
(3 × 256 × 4 / 16) and the input; most others need less."""

_FLOW_COPIES = 8
"""Embedding grids alive at once: two stages, their mean, a block's input, hidden layer (as wide) and output, router
and score."""

MAX_BLOCKS = 64
"""Most blocks of either kind: eight times the method's."""

MAX_EMBEDDING_DIM = 4096
"""The router decomposes D × D matrices; at this size that takes half a minute."""

MAX_KERNEL = 31
"""Widest context in patches; the method's grid is 28 wide."""

MAX_AXES = 64
"""Most axes of a prototype. The router pads all prototypes to the largest rank."""

MAX_PROTOTYPES = 100_000
"""Most patches in a product's memory: more than a coreset of 10 % of 1,000 images."""

MAX_WEIGHT = 1e6
"""Largest factor; beyond it float32 loses the other operand."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneConfig(_Config):
    """The frozen feature network and the stages that are used."""

    name: str = Field(
        "wide_resnet50_2",
        pattern=r"^[\w.-]+$",
        max_length=200,
        description="a timm model that supports features_only",
    )
    strides: tuple[Annotated[int, Field(ge=1, le=128)], ...] = Field(
        (8, 16), min_length=1, max_length=8, description="strides of the stages, finest first"
    )
    image_size: int = Field(224, ge=32, le=4096, description="side of the square input, in pixels")
    embedding_dim: int = Field(768, ge=4, le=MAX_EMBEDDING_DIM, description="D, the dimension of a patch embedding")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides must be strictly increasing; got {self.strides}")
        if self.embedding_dim % 4:  # x and y halves of the position code, each of sine and cosine
            raise ValueError(f"embedding_dim must be a multiple of 4; got {self.embedding_dim}")
        if self.activation_bytes > MAX_ACTIVATION_BYTES:
            raise ValueError(
                f"image_size {self.image_size} with embeddings of {self.embedding_dim} at stride {self.strides[0]} "
                f"needs about {self.activation_bytes / 2**30:.1f} GiB per image; the limit is "
                f"{MAX_ACTIVATION_BYTES / 2**30:.0f} GiB"
            )
        return self

    @property
    def activation_bytes(self) -> int:
        """Estimated peak activation memory of one image in float32: pixels × ``_BACKBONE_BYTES`` + patches × D × 4 ×
        ``_FLOW_COPIES``."""
        pixels, cells = self.image_size**2, math.ceil(self.image_size / self.strides[0]) ** 2
        return pixels * _BACKBONE_BYTES + cells * self.embedding_dim * 4 * _FLOW_COPIES


class FlowConfig(_Config):
    """The flow and its experts (method, sections 3 and 4); the defaults are the MAIN configuration."""

    coupling_blocks: int = Field(
        8, ge=0, le=MAX_BLOCKS, description="MoLE coupling blocks: shared base plus low-rank experts"
    )
    dia_blocks: int = Field(4, ge=0, le=MAX_BLOCKS, description="deep invertible adapter blocks, one set per task")
    lora_rank: int = Field(
        64, ge=1, le=MAX_EMBEDDING_DIM, description="r, rank of an expert's update of a shared weight"
    )
    lora_alpha: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="a; an expert's update is scaled by a / r")
    spatial_context_kernel: int | None = Field(
        3, ge=3, le=MAX_KERNEL, description="side of the mixer's depthwise kernel, odd; null: no mixer"
    )
    scale_context_kernel: int | None = Field(
        5,
        ge=3,
        le=MAX_KERNEL,
        description="side of the scale context's depthwise kernel, odd; null: no context",
    )
    adapter: Adapter = Field("whitening", description="input adapter of each task")
    subnet: Subnet = Field("lora", description="a task's part of a MoLE block: low-rank updates or dense layers")
    sharing: Sharing = Field("frozen", description="how tasks share the base")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("spatial_context_kernel", "scale_context_kernel"):
            side = getattr(self, key)
            if side is not None and side % 2 == 0:
                raise ValueError(f"{key} must be odd; got {side}")
        if not self.coupling_blocks and not self.dia_blocks:
            raise ValueError("coupling_blocks and dia_blocks are both 0; a flow needs at least one block")
        return self

    def starts_base(self, index: int) -> bool:
        """Whether the task at ``index`` starts from a new base, as the first one does."""
        return index == 0 or self.sharing == "separated"


class RouterConfig(_Config):
    """How a task's prototype is regularised (method, section 2)."""

    axes: int = Field(16, ge=0, le=MAX_AXES, description="r, largest rank of the covariance's low-rank part")
    relative_floor: float = Field(
        0.003,
        ge=0,
        le=MAX_WEIGHT,
        description="variance floor, as a fraction of the mean descriptor's mean square",
    )
    spread_axes: int = Field(
        32, ge=0, le=MAX_AXES, description="s, largest rank of the within-product covariance (with augmentations)"
    )
    change_weight: float = Field(
        4.0,
        ge=0,
        le=MAX_WEIGHT,
        description="weight of augmentations in the within-product covariance, relative to good images",
    )


class MemoryConfig(_Config):
    """A product's memory of good patches (``moleflow.model.memory.bank``)."""

    prototypes: int = Field(4000, ge=1, le=MAX_PROTOTYPES, description="most patches that are kept")
    pooled: int = Field(
        1500, ge=0, le=MAX_PROTOTYPES, description="most pooled patches that are kept of a flat surface; 0: none"
    )
    dim: int = Field(192, ge=1, le=MAX_EMBEDDING_DIM, description="principal components of the stages that are kept")


class ScoringConfig(_Config):
    """From a product's likelihoods to its anomaly map; the defaults are the published scoring (method, section 6)."""

    cap: float | None = Field(
        None,
        gt=0,
        le=MAX_WEIGHT,
        description="standard deviations at which the flow's map saturates; null: the map is the NLL itself",
    )
    memory: MemoryConfig | None = Field(None, description="memory that is added to the capped map; null: none")
    flow_weight: float = Field(0.5, ge=0, le=MAX_WEIGHT, description="weight of the capped map beside the memory")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.memory is not None and self.cap is None:
            raise ValueError("scoring with a memory needs a cap: the NLL has no scale to add a distance to")
        return self


class ModelConfig(_Config):
    """Everything that determines a checkpoint's tensor shapes and arithmetic."""

    backbone: BackboneConfig = BackboneConfig()
    flow: FlowConfig = FlowConfig()
    router: RouterConfig = RouterConfig()
    scoring: ScoringConfig = ScoringConfig()
    score_top_k: int = Field(3, ge=1, le=4096**2, description="patches whose mean is the image score")
    expert_dtype: ExpertDtype = Field(
        "float32", description="storage type of experts; they are rounded to it before calibration"
    )
