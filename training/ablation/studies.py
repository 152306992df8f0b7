"""The ablation studies: each row as overrides of the full configuration, with published results.

Published results are by the method's authors and collaborators: MVTec AD, its 15 categories in sequence,
WideResNet-50-2, preset ``main``. Rows without them were not published. Their runs vary by up to 0.4 points, so the same
configuration has different values in some tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moleflow.training.config import FUSED_CAP, Preset

__all__ = ["STUDIES", "Published", "Row", "Study", "rows_for"]


@dataclass(frozen=True, slots=True)
class Published:
    """Published means over 15 categories, in percent; ``None`` if not published."""

    image_auroc: float | None = None
    pixel_auroc: float | None = None
    image_ap: float | None = None
    pixel_ap: float | None = None
    routing: float | None = None


OPEN = Published()
"""Nothing was published for a row."""

MAIN = Published(98.29, 97.82, 99.31, 54.20, 100)
"""The full configuration, as in most tables."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: overrides of the flow, training and scoring configuration."""

    name: str
    flow: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    score_top_k: int | None = None
    scoring: Mapping[str, Any] | None = None
    published: Published = OPEN
    note: str = ""

    def resolve(self, preset: Preset) -> Preset:
        """``preset`` with this row's overrides."""
        changes = {"score_top_k": self.score_top_k, "scoring": self.scoring}
        given = {key: value for key, value in changes.items() if value is not None}
        return preset.with_changes(flow=self.flow, training=self.training, model=given)


@dataclass(frozen=True, slots=True)
class Study:
    """One table. ``forgetting``: also measure the forgetting of earlier products."""

    name: str
    title: str
    rows: tuple[Row, ...]
    forgetting: bool = False


def rows_for(study: Study, preset: Preset) -> list[tuple[Row, Preset]]:
    """Each row with its resolved preset, the full configuration first.

    A row equal to ``preset`` (such as rank 64 of ``main``) is the full one; if there is none, a row is prepended.
    """
    resolved = [(row, row.resolve(preset)) for row in study.rows]
    full = next((pair for pair in resolved if pair[1] == preset), None)
    if full is None:
        return [(Row("full"), preset), *resolved]
    return [full, *(pair for pair in resolved if pair is not full)]


DIA_ONLY = {"coupling_blocks": 0, "dia_blocks": 12}
"""DIA blocks only, as many as ``main`` has of both kinds."""

_STUDIES = (
    Study(
        "core",
        "Core components",
        (
            Row("full", published=MAIN),
            Row(
                "w/o SpatialContextMixer",
                flow={"spatial_context_kernel": None},
                published=Published(98.08, 97.70, 99.23, 52.24, 100),
                note="the spatial mixing module is removed",
            ),
            Row(
                "w/o WhiteningAdapter",
                flow={"adapter": "soft_ln"},
                published=Published(98.06, 97.60, 99.23, 47.14, 100),
                note="SoftLN input adapter instead",
            ),
            Row(
                "w/o tail-aware loss",
                training={"tail_weight": 0.0},
                published=Published(96.62, 97.20, 98.66, 45.86, 100),
                note="standard loss",
            ),
            Row(
                "w/o logdet regularisation",
                training={"lambda_logdet": 0.0},
                published=Published(98.29, 97.66, 99.31, 51.06, 100),
                note="lambda_logdet = 0",
            ),
            Row("w/o MoLE subnet", flow=DIA_ONLY, note="no MoLE subnet and no LoRA: DIA alone, 12 blocks"),
        ),
    ),
    Study(
        "subnet",
        "MoLE subnet",
        (
            Row("full", published=MAIN),
            Row("w/o scale context", flow={"scale_context_kernel": None}, note="the scale sees its patch alone"),
            Row("w/o LoRA", flow={"subnet": "linear"}, note="plain linear layers of each task's own"),
        ),
    ),
    Study(
        "blocks",
        "MoLE / DIA block mix",
        (
            Row("8 MoLE + 4 DIA", flow={"coupling_blocks": 8, "dia_blocks": 4}, published=MAIN),
            Row("10 MoLE + 2 DIA", flow={"coupling_blocks": 10, "dia_blocks": 2}),
            Row("6 MoLE + 6 DIA", flow={"coupling_blocks": 6, "dia_blocks": 6}),
            Row("4 MoLE + 8 DIA", flow={"coupling_blocks": 4, "dia_blocks": 8}),
            Row("0 MoLE + 12 DIA", flow=DIA_ONLY, note="DIA only"),
        ),
    ),
    Study(
        "sharing",
        "Sharing of the base weights",
        (
            Row(
                "frozen",
                flow={"sharing": "frozen"},
                published=MAIN,
                note="base learned with the first task, then frozen (published size: 1.0×)",
            ),
            Row(
                "sequential",
                flow={"sharing": "sequential"},
                note="base shared and trained on through all tasks (published size: 1.0×)",
            ),
            Row(
                "separated",
                flow={"sharing": "separated"},
                note="a whole base for each task, nothing shared (published size: 15.0×, for 15 tasks)",
            ),
        ),
        forgetting=True,
    ),
    Study(
        "lora_rank",
        "LoRA rank",
        (
            Row("16", flow={"lora_rank": 16}),
            Row("32", flow={"lora_rank": 32}),
            Row("64", flow={"lora_rank": 64}, published=Published(98.30, 97.83, None, 54.04)),
            Row(
                "128",
                flow={"lora_rank": 128},
                published=Published(98.36, 97.80, None, 52.42),
                note="published with 80 epochs, 5 DIA and 10 coupling blocks; here the rank alone differs, so that the "
                "table has one cause",
            ),
        ),
    ),
    Study(
        "lambda_logdet",
        "Weight of the log-determinant's regularisation",
        (
            Row(
                "5e-4",
                training={"lambda_logdet": 5e-4},
                published=Published(97.70, 97.55, None, 52.35),
                note="too strong",
            ),
            Row("2e-4", training={"lambda_logdet": 2e-4}, published=Published(98.19, 97.79, None, 54.18)),
            Row("1e-4", training={"lambda_logdet": 1e-4}, published=Published(98.29, 97.82, None, 54.20)),
            Row("1e-5", training={"lambda_logdet": 1e-5}),
            Row("0", training={"lambda_logdet": 0.0}, published=Published(98.29, 97.66, None, 51.06)),
        ),
    ),
    Study(
        "scale_context_kernel",
        "Side of the scale context's kernel",
        (
            Row("3", flow={"scale_context_kernel": 3}, published=Published(98.36, 97.71, None, 52.16)),
            Row("5", flow={"scale_context_kernel": 5}, published=Published(98.36, 97.80, None, 52.42)),
            Row("7", flow={"scale_context_kernel": 7}),
        ),
    ),
    Study(
        "spatial_context_kernel",
        "Side of the spatial mixer's kernel",
        (
            Row("3", flow={"spatial_context_kernel": 3}, published=Published(98.29, 97.82, None, 54.20)),
            Row("5", flow={"spatial_context_kernel": 5}),
            Row("7", flow={"spatial_context_kernel": 7}),
        ),
    ),
    Study(
        "tail_weight",
        "Weight of the worst patches in the loss",
        (
            Row("0", training={"tail_weight": 0.0}, published=Published(96.62, 97.20, None, 45.86)),
            Row("0.3", training={"tail_weight": 0.3}),
            Row("0.5", training={"tail_weight": 0.5}),
            Row("0.65", training={"tail_weight": 0.65}, published=Published(98.24, 97.81, None, 53.95)),
            Row("0.7", training={"tail_weight": 0.7}, published=Published(98.29, 97.82, None, 54.20)),
            Row("1.0", training={"tail_weight": 1.0}),
        ),
    ),
    Study(
        "score_top_k",
        "Patches whose mean is the image score",
        (
            Row("1", score_top_k=1, note="the full row's weights; only the scoring differs"),
            Row("3", score_top_k=3, published=Published(98.29, 97.82, None, 54.20)),
            Row(
                "5",
                score_top_k=5,
                published=Published(98.30, 97.83, None, 54.04),
                note="the full row's weights; only the scoring differs",
            ),
            Row("7", score_top_k=7, note="the full row's weights; only the scoring differs"),
        ),
    ),
    Study(
        "scoring",
        "From likelihoods to the anomaly map",
        (
            Row("published", scoring={}, published=Published(98.29, 97.82, 99.31, 54.20), note="the map is the NLL"),
            Row("capped", scoring={"cap": 3.0}, note="the map saturates; the image score stays that of the NLL"),
            Row(
                "capped, with memory",
                scoring={"cap": FUSED_CAP, "memory": {}},
                note="a coreset of good patches is added",
            ),
        ),
    ),
)

STUDIES = {study.name: study for study in _STUDIES}
