"""Whatever a header says, it is either sound or refused in one line; nothing large is made for it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from moleflow.model.config import BackboneConfig, ModelConfig
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.header import parse_header

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def document(checkpoint: Checkpoint) -> dict[str, Any]:
    """The header of the tiny checkpoint as plain values."""
    return json.loads(checkpoint.header.model_dump_json())


def test_a_header_is_read_as_it_was_written(checkpoint: Checkpoint) -> None:
    assert parse_header(checkpoint.header.model_dump_json()) == checkpoint.header


def put(*path: str | int, value: object) -> Change:
    """A change that sets one value deep in a document."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def everywhere(image_size: int) -> Change:
    """The same size of image in both places that have it."""

    def change(document: dict[str, Any]) -> None:
        document["preprocessing"]["image_size"] = document["config"]["backbone"]["image_size"] = image_size

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("tasks", value=[]), "tasks: .*at least 1"),
        (put("tasks", value={}), "tasks: .*array"),
        (put("tasks", 0, "name", value="two\nlines"), "tasks.0.name: .*control characters"),
        (put("tasks", 0, "name", value="x" * 2**20), "tasks.0.name: .*1,048,576 characters"),
        (put("tasks", 0, "name", value=7), "tasks.0.name: .*string"),
        (put("tasks", 1, "name", value="bolt"), "named once each; 2 are called 'bolt'"),
        (put("tasks", 1, "index", value=2), "numbered in order"),
        (put("tasks", 1, "index", value=True), "tasks.1.index: .*integer"),
        (put("tasks", 1, "index", value=1.0), "tasks.1.index: .*integer"),
        (put("tasks", 1, "index", value="1"), "tasks.1.index: .*integer"),
        (put("tasks", 0, "seed", value=2**63), "tasks.0.seed: .*less than"),
        (put("tasks", 0, "train_images", value=10**10), "tasks.0.train_images: .*less than"),
        (put("tasks", 0, "epochs", value=0), "tasks.0.epochs: .*greater than"),
        (put("tasks", 0, "learned_at", value="1970-01-01T00:00:00Z"), "tasks.0.learned_at: .*2000"),
        (put("tasks", 0, "learned_at", value="9999-01-01T00:00:00Z"), "tasks.0.learned_at: .*2200"),
        (put("tasks", 0, "learned_at", value="2026-01-01T00:00:00"), "tasks.0.learned_at: .*timezone"),
        (put("tasks", 0, "learned_at", value=5), "tasks.0.learned_at"),
        (put("tasks", 0, "threshold", value=None), "tasks.0.threshold: .*number"),
        (put("tasks", 0, "threshold", value=1e999), "Infinity, which is not a number"),
        (put("tasks", 0, "false_alarm_rate", value=0), "tasks.0.false_alarm_rate: .*greater than"),
        (put("tasks", 0, "sha256", value="AB" * 32), "tasks.0.sha256: .*pattern"),
        (put("tasks", 0, "sha256", value="ab" * 31), "tasks.0.sha256: .*pattern"),
        (put("tasks", 0, "sha256", value="ab" * 32 + "\n"), "tasks.0.sha256: .*pattern"),
        (put("tasks", 0, "surprise", value=1), "tasks.0.surprise"),
        (put("base_sha256", value=""), "base_sha256: .*pattern"),
        (put("preset", value="\x1b[31mred"), "preset: .*pattern"),
        (put("preprocessing", "std", value=[0.5, 0.5, 0]), "preprocessing.std.2: .*greater than"),
        (put("preprocessing", "std", value=[0.5, 0.5]), "preprocessing.std"),
        (put("preprocessing", "mean", value=[0.5, 0.5, 1e300]), "preprocessing.mean.2: .*less than"),
        (put("preprocessing", "interpolation", value="nearest"), "preprocessing.interpolation"),
        (put("preprocessing", "image_size", value=64), "preprocessing.image_size 64 must be the backbone's, 32"),
        (put("config", "backbone", "image_size", value=32.0), "config.backbone.image_size: .*integer"),
        (everywhere(4096), "config.backbone: image_size 4096 .* needs about .* GiB per image"),
        (everywhere(10**9), "config.backbone.image_size: .*less than"),
        (put("config", "backbone", "strides", value=[]), "config.backbone.strides: .*at least 1"),
        (put("config", "backbone", "strides", value=[0, 8]), "config.backbone.strides.0: .*greater than"),
        (put("config", "backbone", "strides", value=list(range(1, 100))), "config.backbone.strides: .*at most 8"),
        (put("config", "backbone", "name", value="../../etc"), "config.backbone.name: .*pattern"),
        (put("config", "backbone", "name", value="x" * 300), "config.backbone.name: .*at most 200"),
        (put("config", "backbone", "embedding_dim", value=2**40), "config.backbone.embedding_dim: .*less than"),
        (put("config", "flow", "coupling_blocks", value=10**6), "config.flow.coupling_blocks: .*less than"),
        (put("config", "flow", "dia_blocks", value=10**6), "config.flow.dia_blocks: .*less than"),
        (put("config", "flow", "lora_rank", value=10**6), "config.flow.lora_rank: .*less than"),
        (put("config", "flow", "lora_alpha", value=1e30), "config.flow.lora_alpha: .*less than"),
        (put("config", "flow", "scale_context_kernel", value=10**6 + 1), "config.flow.scale_context_kernel: .*less"),
        (put("config", "router", "axes", value=10**6), "config.router.axes: .*less than"),
        (put("config", "router", "relative_floor", value=-1.0), "config.router.relative_floor: .*greater than"),
        (put("config", "score_top_k", value=10**18), "config.score_top_k: .*less than"),
        (put("config", value=[]), "config: "),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_place(document: dict[str, Any], change: Change, message: str) -> None:
    change(document)
    with pytest.raises(ValueError, match=message) as caught:
        parse_header(json.dumps(document))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 4, "format_version": 4}', "comes twice"),
        ('{"format_version": 4, "tasks": [{"name": "a", "name": "b"}]}', "comes twice"),
        ('{"format_version": 4, "preset": NaN}', "NaN, which is not a number"),
        ('{"format_version": 4, "preset": -Infinity}', "-Infinity, which is not a number"),
        ('{"format_version": 4, "preset": "\\ud800"}', "hex escape"),
        ('{"format_version": 4, "preset": ' + "9" * 5000 + "}", "digits"),
        ('{"format_version": true}', "format version True"),
        ('{"format_version": 4.0}', "format version 4.0"),
        ('{"format_version": [4]}', "format version"),
        ("{}", "no format_version"),
        ("[]", "no format_version"),
        ("null", "no format_version"),
        ("", "Expecting value"),
    ],
)
def test_a_document_that_is_no_header_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_header(text)


def test_names_that_differ_in_their_spelling_only_are_named_twice(document: dict[str, Any]) -> None:
    document["tasks"][0]["name"], document["tasks"][1]["name"] = "Caf\u00e9", "Cafe\u0301"
    with pytest.raises(ValueError, match="2 are called 'Caf\u00e9'"):
        parse_header(json.dumps(document))


def test_a_decomposed_name_of_an_older_file_is_known_in_every_spelling(document: dict[str, Any]) -> None:
    document["tasks"][1]["name"] = "Cafe\u0301"
    header = parse_header(json.dumps(document))
    assert header.tasks[1].name == "Caf\u00e9"
    assert header.task("Caf\u00e9") is header.task("Cafe\u0301") is header.tasks[1]


def test_what_the_method_and_its_presets_use_is_far_within_the_limits() -> None:
    assert ModelConfig().backbone.activation_bytes < 50 * 2**20
    BackboneConfig(image_size=1024)
    Preprocessing(image_size=224, mean=(0, 0, 0), std=(1, 1, 1))


def test_numbers_that_are_not_finite_are_no_configuration() -> None:
    for build in (
        lambda: Preprocessing(image_size=32, mean=(float("nan"), 0, 0), std=(1, 1, 1)),
        lambda: ModelConfig.model_validate({"flow": {"lora_alpha": float("inf")}}),
        lambda: ModelConfig.model_validate({"router": {"change_weight": float("nan")}}),
    ):
        with pytest.raises(ValueError, match="finite"):
            build()


def test_a_header_of_many_faults_is_refused_in_a_short_line(document: dict[str, Any]) -> None:
    document["tasks"] = [{"x" * 10_000: each} for each in range(2000)]
    with pytest.raises(ValueError, match=r"and \d+ more") as caught:
        parse_header(json.dumps(document))
    assert len(str(caught.value)) < 1000
