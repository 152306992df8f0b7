"""Invalid configurations are refused, and the presets are as documented."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from moleflow.model.config import BackboneConfig, FlowConfig, ModelConfig
from moleflow.model.errors import ConfigurationError
from moleflow.training.config import PRESETS, TrainingConfig, preset


def test_the_defaults_are_the_main_preset() -> None:
    config = ModelConfig()
    assert config.backbone == BackboneConfig(name="wide_resnet50_2", strides=(8, 16), image_size=224, embedding_dim=768)
    assert config.flow == FlowConfig(
        coupling_blocks=8, dia_blocks=4, lora_rank=64, lora_alpha=1, spatial_context_kernel=3, scale_context_kernel=5
    )
    assert config.score_top_k == 3
    schedule = TrainingConfig()
    assert (schedule.epochs, schedule.batch_size, schedule.learning_rate) == (60, 16, 3e-4)
    assert (schedule.tail_weight, schedule.tail_fraction, schedule.lambda_logdet) == (0.7, 0.02, 1e-4)
    assert (schedule.warmup_epochs, schedule.final_learning_rate, schedule.max_gradient_norm) == (2, 0.01, 0.5)
    assert preset("main").model == config
    assert preset("main").training == schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackboneConfig(strides=(16, 8)), "strides must be strictly increasing"),
        (lambda: BackboneConfig(strides=(8, 8)), "strides must be strictly increasing"),
        (lambda: BackboneConfig(strides=()), "strides"),
        (lambda: BackboneConfig(embedding_dim=770), "multiple of 4"),
        (lambda: BackboneConfig(image_size=16), "image_size"),
        (lambda: FlowConfig(scale_context_kernel=4), "scale_context_kernel must be odd; got 4"),
        (lambda: FlowConfig(spatial_context_kernel=6), "spatial_context_kernel must be odd; got 6"),
        (lambda: FlowConfig(lora_rank=0), "lora_rank"),
        (lambda: FlowConfig.model_validate({"blocks": 8}), "blocks"),
        (lambda: TrainingConfig(epochs=0), "epochs"),
        (lambda: TrainingConfig(held_out_fraction=1.0), "held_out_fraction"),
    ],
)
def test_an_invalid_configuration_is_refused_with_the_field(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_a_configuration_survives_serialisation() -> None:
    for each in PRESETS.values():
        assert ModelConfig.model_validate_json(each.model.model_dump_json()) == each.model


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'large' is not known; use one of main, fast, small"):
        preset("large")


def test_overrides_of_a_preset_change_only_the_named_fields() -> None:
    changed = preset("main").with_changes(backbone={"image_size": 320}, training={"epochs": 3})
    assert changed.model.backbone.image_size == 320
    assert changed.training == preset("main").training.model_copy(update={"epochs": 3})
    assert changed.model.flow == preset("main").model.flow
    assert preset("main").model.backbone.image_size == 224


def test_a_number_of_epochs_is_taken_at_its_word() -> None:
    assert preset("fast").training.max_steps == 120
    assert preset("fast").with_changes(training={"epochs": 30}).training.max_steps is None
    assert preset("fast").with_changes(training={"epochs": 30, "max_steps": 7}).training.max_steps == 7


@pytest.mark.parametrize(
    ("backbone", "training", "message"),
    [
        ({}, {"learning_rate": 0.0}, "learning_rate 0.0 cannot be used: .*greater than 0"),
        ({"image_size": 8}, {}, "image_size 8 cannot be used"),
        ({"embedding_dim": 18}, {}, "this configuration cannot be used: embedding_dim must be a multiple of 4"),
    ],
)
def test_an_invalid_override_is_an_error_that_names_it(backbone: dict, training: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        preset("main").with_changes(backbone=backbone, training=training)
