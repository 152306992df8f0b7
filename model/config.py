"""The network's configuration: typed, stored in the checkpoint, and the same for training and serving.

Every number has an upper limit, since it may come from anybody's file: far above what the method uses, and low enough
that no header makes a program allocate or compute without end. What the limits do not bound one by one, the *memory of
an image's passage* does for all together (``activation_bytes``). What weights take is bounded by the file that they are
in (``moleflow.model.store.layout``).
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "DEFAULT_UNKNOWN_LIMIT",
    "Adapter",
    "BackboneConfig",
    "ExpertDtype",
    "FlowConfig",
    "ModelConfig",
    "RouterConfig",
    "Sharing",
    "Subnet",
]

Adapter = Literal["whitening", "soft_ln", "zca"]
"""What prepares a task's embeddings for the flow: an adapter of ``moleflow.model.flow.adapters``."""

Subnet = Literal["lora", "linear"]
"""What a task brings to a MoLE block: low-rank changes to shared layers, or plain dense layers of its own."""

Sharing = Literal["frozen", "sequential", "separated"]
"""The base: learned with the first task and then frozen; trained on with every task, which moves it under the older
ones; or a whole one for each task."""

ExpertDtype = Literal["float32", "bfloat16"]
"""The type that experts are stored in; they are trained, and folded into the base, in float32."""

DEFAULT_UNKNOWN_LIMIT = 0.7
"""Novelty score (``moleflow.model.routing.novelty``) up to which an image belongs to a product, unless told otherwise:
what 1 % of the altered *training* images of learned products exceed, rounded. ``benchmarks/unknown_verdicts.py``
measures that, and what it does to test images."""


MAX_ACTIVATION_BYTES = 2 * 2**30
"""Most memory that one image may take on its way through the network, as ``activation_bytes`` estimates it."""

_BACKBONE_BYTES = 200
"""Bytes a pixel of the input that a backbone holds at once: WideResNet-50-2 has 256 channels at stride 4 before, in and
after a block (3 × 256 × 4 / 16), and the input itself; most others take less."""

_FLOW_COPIES = 8
"""Grids of embeddings that are held at once: two stages, their mean, a block's input, hidden layer (as wide) and
output, and what the router and the score make of it."""

MAX_BLOCKS = 64
"""Most blocks of either kind: eight times the method's."""

MAX_EMBEDDING_DIM = 4096
"""Widest embedding: the router decomposes matrices of this side, which takes half a minute."""

MAX_KERNEL = 31
"""Widest context in patches: wider than the grid of the method's input, 28."""

MAX_AXES = 64
"""Most axes of a prototype. The router pads every product's to the longest, so that one would make all others long."""

MAX_WEIGHT = 1e6
"""Largest factor; with larger ones float32 loses what they are multiplied with."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneConfig(_Config):
    """Which frozen network makes the features, and which of its stages are used."""

    name: str = Field(
        "wide_resnet50_2",
        pattern=r"^[\w.-]+$",
        max_length=200,
        description="a timm model that supports features_only",
    )
    strides: tuple[Annotated[int, Field(ge=1, le=128)], ...] = Field(
        (8, 16), min_length=1, max_length=8, description="strides of the stages used, finest first"
    )
    image_size: int = Field(224, ge=32, le=4096, description="side of the square input, in pixels")
    embedding_dim: int = Field(768, ge=4, le=MAX_EMBEDDING_DIM, description="D, the width of a patch embedding")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides must rise and not repeat; got {self.strides}")
        if self.embedding_dim % 4:
            raise ValueError(
                f"embedding_dim must be a multiple of 4 (halves, sine and cosine); got {self.embedding_dim}"
            )
        if self.activation_bytes > MAX_ACTIVATION_BYTES:
            raise ValueError(
                f"image_size {self.image_size} with embeddings of {self.embedding_dim} at stride {self.strides[0]} "
                f"takes about {self.activation_bytes / 2**30:.1f} GiB an image, more than the "
                f"{MAX_ACTIVATION_BYTES / 2**30:.0f} GiB that are given to one"
            )
        return self

    @property
    def activation_bytes(self) -> int:
        """An estimate of what one image takes on its way through backbone and flow, in float32.

        Of the passage that holds most: pixels × ``_BACKBONE_BYTES`` + cells of the finest grid × D × 4 ×
        ``_FLOW_COPIES``.
        """
        pixels, cells = self.image_size**2, math.ceil(self.image_size / self.strides[0]) ** 2
        return pixels * _BACKBONE_BYTES + cells * self.embedding_dim * 4 * _FLOW_COPIES


class FlowConfig(_Config):
    """The flow and its experts (method, sections 3 and 4); the defaults are the MAIN configuration."""

    coupling_blocks: int = Field(
        8, ge=0, le=MAX_BLOCKS, description="MoLE coupling blocks, shared base plus low-rank experts"
    )
    dia_blocks: int = Field(4, ge=0, le=MAX_BLOCKS, description="deep invertible adapter blocks, one set a task")
    lora_rank: int = Field(
        64, ge=1, le=MAX_EMBEDDING_DIM, description="r, rank of an expert's change to a shared weight"
    )
    lora_alpha: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="a; an expert's change is scaled by a / r")
    spatial_context_kernel: int | None = Field(
        3, ge=3, le=MAX_KERNEL, description="side of the mixer's depthwise kernel, odd; none: there is no mixer"
    )
    scale_context_kernel: int | None = Field(
        5,
        ge=3,
        le=MAX_KERNEL,
        description="side of the scale context's depthwise kernel, odd; none: the scale sees its patch alone",
    )
    adapter: Adapter = Field("whitening", description="what prepares a task's embeddings for the flow")
    subnet: Subnet = Field("lora", description="what a task brings to a MoLE block: low-rank changes, or whole layers")
    sharing: Sharing = Field("frozen", description="whose the base is, and when it learns")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("spatial_context_kernel", "scale_context_kernel"):
            side = getattr(self, key)
            if side is not None and side % 2 == 0:
                raise ValueError(f"{key} must be odd; got {side}")
        if not self.coupling_blocks and not self.dia_blocks:
            raise ValueError("coupling_blocks and dia_blocks are both 0; a flow needs a block of either kind")
        return self

    def starts_base(self, index: int) -> bool:
        """Whether the task at ``index`` in the order of learning begins with a new base, as the first one does."""
        return index == 0 or self.sharing == "separated"


class RouterConfig(_Config):
    """How a task's prototype is regularised (method, section 2)."""

    axes: int = Field(
        16, ge=0, le=MAX_AXES, description="r, axes of the covariance kept beside the isotropic floor, at most"
    )
    relative_floor: float = Field(
        0.003,
        ge=0,
        le=MAX_WEIGHT,
        description="least variance of any direction, as a share of the mean descriptor's mean square",
    )
    spread_axes: int = Field(
        32, ge=0, le=MAX_AXES, description="s, axes of what altered images of the task differ by, at most"
    )
    change_weight: float = Field(
        4.0,
        ge=0,
        le=MAX_WEIGHT,
        description="weight of what alterations do to images, beside what good images differ by",
    )


class ModelConfig(_Config):
    """Everything that decides the shapes and the arithmetic of a checkpoint."""

    backbone: BackboneConfig = BackboneConfig()
    flow: FlowConfig = FlowConfig()
    router: RouterConfig = RouterConfig()
    score_top_k: int = Field(3, ge=1, le=4096**2, description="patches whose mean is the image score")
    expert_dtype: ExpertDtype = Field(
        "float32", description="type that experts are stored in; they are rounded to it before they are calibrated"
    )
