"""The network's configuration: typed, stored in the checkpoint, and the same for training and serving."""

from typing import Literal, Self

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
"""What prepares a task's embeddings for the flow: ``model.adapter``, ``model.soft_ln`` or ``model.zca``."""

Subnet = Literal["lora", "linear"]
"""What a task brings to a MoLE block: low-rank changes to shared layers, or plain dense layers of its own."""

Sharing = Literal["frozen", "sequential", "separated"]
"""The base: learned with the first task and then frozen; trained on with every task, which moves it under the older
ones; or a whole one for each task."""

ExpertDtype = Literal["float32", "bfloat16"]
"""The type that experts are stored in; they are trained, and folded into the base, in float32."""

DEFAULT_UNKNOWN_LIMIT = 0.7
"""Strangeness (``model.unknown``) up to which a picture belongs to a product, unless told otherwise: what 1 % of the
altered *training* pictures of learned products exceed, rounded. ``benchmarks/unknown_verdicts.py`` measures that, and
what it does to test pictures."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneConfig(_Config):
    """Which frozen network makes the features, and which of its stages are used."""

    name: str = Field("wide_resnet50_2", description="a timm model that supports features_only")
    strides: tuple[int, ...] = Field((8, 16), min_length=1, description="strides of the stages used, finest first")
    image_size: int = Field(224, ge=32, le=4096, description="side of the square input, in pixels")
    embedding_dim: int = Field(768, ge=4, description="D, the width of a patch embedding")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides must rise and not repeat; got {self.strides}")
        if self.embedding_dim % 4:
            raise ValueError(
                f"embedding_dim must be a multiple of 4 (halves, sine and cosine); got {self.embedding_dim}"
            )
        return self


class FlowConfig(_Config):
    """The flow and its experts (method, sections 3 and 4); the defaults are the MAIN configuration."""

    coupling_blocks: int = Field(8, ge=0, description="MoLE coupling blocks, shared base plus low-rank experts")
    dia_blocks: int = Field(4, ge=0, description="deep invertible adapter blocks, one set a task")
    lora_rank: int = Field(64, ge=1, description="r, rank of an expert's change to a shared weight")
    lora_alpha: float = Field(1.0, gt=0, description="a; an expert's change is scaled by a / r")
    spatial_context_kernel: int | None = Field(
        3, ge=3, description="side of the mixer's depthwise kernel, odd; none: there is no mixer"
    )
    scale_context_kernel: int | None = Field(
        5, ge=3, description="side of the scale context's depthwise kernel, odd; none: the scale sees its patch alone"
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

    axes: int = Field(16, ge=0, description="r, axes of the covariance kept beside the isotropic floor, at most")
    relative_floor: float = Field(
        0.003, ge=0, description="least variance of any direction, as a share of the mean descriptor's mean square"
    )
    spread_axes: int = Field(32, ge=0, description="s, axes of what altered pictures of the task differ by, at most")
    change_weight: float = Field(
        4.0, ge=0, description="weight of what alterations do to pictures, beside what good pictures differ by"
    )


class ModelConfig(_Config):
    """Everything that decides the shapes and the arithmetic of a checkpoint."""

    backbone: BackboneConfig = BackboneConfig()
    flow: FlowConfig = FlowConfig()
    router: RouterConfig = RouterConfig()
    score_top_k: int = Field(3, ge=1, description="patches whose mean is the image score")
    expert_dtype: ExpertDtype = Field(
        "float32", description="type that experts are stored in; they are rounded to it before they are calibrated"
    )
