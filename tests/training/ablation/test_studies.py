"""The rows of the studies match the documentation, and differ from ``main`` only in their overrides."""

from typing import Any, get_args

import pytest

from moleflow.commands.ablate import StudyName
from moleflow.training.ablation.studies import STUDIES, Published, Row, rows_for
from moleflow.training.config import Preset, preset

MAIN = preset("main")

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "core": {
        "full": {},
        "w/o SpatialContextMixer": {"spatial_context_kernel": None},
        "w/o WhiteningAdapter": {"adapter": "soft_ln"},
        "w/o tail-aware loss": {"tail_weight": 0.0},
        "w/o logdet regularisation": {"lambda_logdet": 0.0},
        "w/o MoLE subnet": {"coupling_blocks": 0, "dia_blocks": 12},
    },
    "subnet": {"full": {}, "w/o scale context": {"scale_context_kernel": None}, "w/o LoRA": {"subnet": "linear"}},
    "blocks": {
        "8 MoLE + 4 DIA": {},
        "10 MoLE + 2 DIA": {"coupling_blocks": 10, "dia_blocks": 2},
        "6 MoLE + 6 DIA": {"coupling_blocks": 6, "dia_blocks": 6},
        "4 MoLE + 8 DIA": {"coupling_blocks": 4, "dia_blocks": 8},
        "0 MoLE + 12 DIA": {"coupling_blocks": 0, "dia_blocks": 12},
    },
    "sharing": {"frozen": {}, "sequential": {"sharing": "sequential"}, "separated": {"sharing": "separated"}},
    "lora_rank": {"64": {}, "16": {"lora_rank": 16}, "32": {"lora_rank": 32}, "128": {"lora_rank": 128}},
    "lambda_logdet": {
        "1e-4": {},
        "5e-4": {"lambda_logdet": 5e-4},
        "2e-4": {"lambda_logdet": 2e-4},
        "1e-5": {"lambda_logdet": 1e-5},
        "0": {"lambda_logdet": 0.0},
    },
    "scale_context_kernel": {"5": {}, "3": {"scale_context_kernel": 3}, "7": {"scale_context_kernel": 7}},
    "spatial_context_kernel": {"3": {}, "5": {"spatial_context_kernel": 5}, "7": {"spatial_context_kernel": 7}},
    "tail_weight": {
        "0.7": {},
        "0": {"tail_weight": 0.0},
        "0.3": {"tail_weight": 0.3},
        "0.5": {"tail_weight": 0.5},
        "0.65": {"tail_weight": 0.65},
        "1.0": {"tail_weight": 1.0},
    },
    "score_top_k": {"3": {}, "1": {"score_top_k": 1}, "5": {"score_top_k": 5}, "7": {"score_top_k": 7}},
    "scoring": {
        "published": {},
        "capped": {"cap": 3.0},
        "capped, with memory": {"cap": 4.0, "memory": {"prototypes": 4000, "pooled": 1500, "dim": 192}},
    },
}
"""Study → row, in table order → the fields that differ from ``main``, and their values."""

FIGURES = {
    ("core", "full"): (98.29, 97.82, 99.31, 54.20),
    ("core", "w/o SpatialContextMixer"): (98.08, 97.70, 99.23, 52.24),
    ("core", "w/o WhiteningAdapter"): (98.06, 97.60, 99.23, 47.14),
    ("core", "w/o tail-aware loss"): (96.62, 97.20, 98.66, 45.86),
    ("core", "w/o logdet regularisation"): (98.29, 97.66, 99.31, 51.06),
    ("subnet", "full"): (98.29, 97.82, 99.31, 54.20),
    ("blocks", "8 MoLE + 4 DIA"): (98.29, 97.82, 99.31, 54.20),
    ("sharing", "frozen"): (98.29, 97.82, 99.31, 54.20),
    ("lora_rank", "64"): (98.30, 97.83, None, 54.04),
    ("lora_rank", "128"): (98.36, 97.80, None, 52.42),
    ("lambda_logdet", "5e-4"): (97.70, 97.55, None, 52.35),
    ("lambda_logdet", "2e-4"): (98.19, 97.79, None, 54.18),
    ("lambda_logdet", "1e-4"): (98.29, 97.82, None, 54.20),
    ("lambda_logdet", "0"): (98.29, 97.66, None, 51.06),
    ("scale_context_kernel", "3"): (98.36, 97.71, None, 52.16),
    ("scale_context_kernel", "5"): (98.36, 97.80, None, 52.42),
    ("spatial_context_kernel", "3"): (98.29, 97.82, None, 54.20),
    ("tail_weight", "0"): (96.62, 97.20, None, 45.86),
    ("tail_weight", "0.65"): (98.24, 97.81, None, 53.95),
    ("tail_weight", "0.7"): (98.29, 97.82, None, 54.20),
    ("score_top_k", "3"): (98.29, 97.82, None, 54.20),
    ("score_top_k", "5"): (98.30, 97.83, None, 54.04),
    ("scoring", "published"): (98.29, 97.82, 99.31, 54.20),
}
"""Published cells: image and pixel AUROC, image and pixel AP. All others are open."""


def fields(chosen: Preset) -> dict[str, Any]:
    """Every field of a configuration that is not itself a configuration."""
    model = chosen.model.model_dump()
    parts = [
        *(model.pop(part) for part in ("backbone", "flow", "router", "scoring")),
        model,
        chosen.training.model_dump(),
    ]
    assert len({key for part in parts for key in part}) == sum(len(part) for part in parts)
    return {key: value for part in parts for key, value in part.items()}


def test_the_studies_match_the_documentation_and_the_command_line() -> None:
    assert list(STUDIES) == list(CHANGES) == list(get_args(StudyName))


@pytest.mark.parametrize("study", CHANGES)
def test_the_rows_match_the_documentation_with_the_full_configuration_first(study: str) -> None:
    assert [row.name for row, _ in rows_for(STUDIES[study], MAIN)] == list(CHANGES[study])


@pytest.mark.parametrize(("study", "name"), [(study, name) for study, rows in CHANGES.items() for name in rows])
def test_a_row_differs_from_main_in_exactly_its_overrides(study: str, name: str) -> None:
    resolved = next(resolved for row, resolved in rows_for(STUDIES[study], MAIN) if row.name == name)
    before, after = fields(MAIN), fields(resolved)
    assert {key: value for key, value in after.items() if value != before[key]} == CHANGES[study][name]


@pytest.mark.parametrize(("study", "name"), [(study, name) for study, rows in CHANGES.items() for name in rows])
def test_published_results_are_in_their_rows_and_others_are_open(study: str, name: str) -> None:
    row = next(row for row in STUDIES[study].rows if row.name == name)
    figures = row.published
    found = (figures.image_auroc, figures.pixel_auroc, figures.image_ap, figures.pixel_ap)
    assert found == FIGURES.get((study, name), (None, None, None, None))
    assert (figures == Published()) == ((study, name) not in FIGURES)


def test_a_row_published_with_other_changes_has_a_note() -> None:
    row = next(row for row in STUDIES["lora_rank"].rows if row.name == "128")
    assert "80 epochs, 5 DIA and 10 coupling blocks" in row.note


def test_only_the_sharing_study_measures_forgetting() -> None:
    assert [study.name for study in STUDIES.values() if study.forgetting] == ["sharing"]


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("name", ["main", "small"])
def test_the_first_row_is_the_preset_and_no_configuration_occurs_twice(study: str, name: str) -> None:
    chosen = preset(name).with_changes(training={"epochs": 3})
    resolved = [resolved for _, resolved in rows_for(STUDIES[study], chosen)]
    assert resolved[0] == chosen
    assert all(one != other for number, one in enumerate(resolved) for other in resolved[:number])


def test_a_preset_that_equals_no_row_is_prepended() -> None:
    chosen = MAIN.with_changes(flow={"lora_rank": 48})
    rows = rows_for(STUDIES["lora_rank"], chosen)
    assert [row.name for row, _ in rows] == ["full", "16", "32", "64", "128"]
    assert rows[0] == (Row("full"), chosen)


def test_the_rank_of_the_small_preset_is_its_full_row() -> None:
    assert [row.name for row, _ in rows_for(STUDIES["lora_rank"], preset("small"))] == ["16", "32", "64", "128"]
