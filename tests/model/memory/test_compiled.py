"""Products scored by OpenVINO have the maps that PyTorch computes; a graph is converted and compiled once for all."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import product_image

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.compiled import PROTOTYPES, ScorerCompiler
from moleflow.model.memory.plain import PlainBank
from moleflow.model.memory.scorer import ProductScorer
from moleflow.model.runtime import templates
from moleflow.model.runtime.conversion import infer
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.area import Outlines

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")

IMAGES = [product_image(kind, 80 + kind) for kind in (0, 2, 1, 0, 1)]


@pytest.fixture(scope="module")
def seen(fused: Checkpoint) -> PatchFeatures:
    features = FeatureExtractor.for_prediction(fused.header.config, fused.backbone(), "fp32")
    return features(torch.from_numpy(np.stack(IMAGES)))


def compiler(checkpoint: Checkpoint, seen: PatchFeatures, folder: Path) -> ScorerCompiler:
    grids = [(each.shape[1], each.shape[2], each.shape[3]) for each in (seen.embeddings, *seen.stages)]
    return ScorerCompiler(checkpoint.header.config, grids, folder)


@pytest.fixture(scope="module")
def compile_product(fused: Checkpoint, seen: PatchFeatures, converted_folder: Path) -> ScorerCompiler:
    return compiler(fused, seen, converted_folder)


def assert_close(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert found is not None and expected is not None
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("product", [0, 1, 2])
def test_maps_are_those_of_pytorch(
    product: int, fused: Checkpoint, seen: PatchFeatures, compile_product: ScorerCompiler
) -> None:
    base, parts = fused.base(), fused.product(product)
    found, expected = compile_product(base, parts), ProductScorer(base, parts)
    for one, other in zip(found.raw_maps(seen), expected.raw_maps(seen), strict=True):
        assert_close(one, other)
    assert_close(found(seen).anomaly, expected(seen).anomaly)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_bank_of_the_other_structure_has_pooled_patches_or_none(
    pooled: bool, fused: Checkpoint, seen: PatchFeatures
) -> None:
    merged = ProductScorer(fused.base(), fused.product(0)).bank
    assert merged is not None
    other = PlainBank(merged, [stage.shape[-1] for stage in seen.stages]).with_pooled(pooled)
    distances = other(*(stage.float() for stage in seen.stages))
    assert distances.shape[1] == 1 + pooled
    assert_close(distances[:, 0], merged(seen.stages)[:, 0])


def test_a_graph_made_for_the_other_structure_computes_it(
    fused: Checkpoint, seen: PatchFeatures, tmp_path: Path
) -> None:
    merged = ProductScorer(fused.base(), fused.product(0)).bank
    assert merged is not None
    bank = PlainBank(merged, [stage.shape[-1] for stage in seen.stages]).with_pooled(True)
    counts = {name: count for name, count in PROTOTYPES.items() if name in bank.state_dict()}
    stages = [stage.float() for stage in seen.stages]
    compiled = templates.Template(bank, stages, counts, tmp_path, {}).compiled(bank)
    assert_close(infer(compiled.create_infer_request(), stages)[0], bank(*stages))


def test_products_of_one_structure_are_compiled_once(
    fused: Checkpoint, seen: PatchFeatures, compile_product: ScorerCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [compile_product(fused.base(), fused.product(index))(seen).nll for index in (0, 1)]
    monkeypatch.setattr("openvino.compile_model", lambda *_: pytest.fail("compiled again"))
    found = [compile_product(fused.base(), fused.product(index))(seen).nll for index in (0, 1)]
    assert all(map(torch.equal, found, expected))


def test_where_weights_cannot_be_replaced_each_product_is_compiled(
    fused: Checkpoint, seen: PatchFeatures, converted_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "MARK_BYTES", 2**30)
    found = compiler(fused, seen, converted_folder)(fused.base(), fused.product(1))(seen)
    assert_close(found.anomaly, ProductScorer(fused.base(), fused.product(1))(seen).anomaly)


def test_where_replaced_weights_are_not_what_computes_each_product_is_compiled(
    fused: Checkpoint,
    seen: PatchFeatures,
    converted_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fill = templates.Template._filled
    # As if the graph computed with copies of the weights that it was compiled with.
    monkeypatch.setattr(templates.Template, "_filled", lambda self, exported, _: fill(self, exported, {}))
    found = compiler(fused, seen, converted_folder)(fused.base(), fused.product(1))(seen)
    assert_close(found.anomaly, ProductScorer(fused.base(), fused.product(1))(seen).anomaly)
    assert "each product is compiled by itself" in caplog.text


def test_what_openvino_cannot_run_is_an_error_that_says_what_to_do(
    fused: Checkpoint, compile_product: ScorerCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(templates.Template, "compiled", fail)
    with pytest.raises(ConfigurationError, match=r"OpenVINO cannot run .*no such operator.*; use engine torch"):
        compile_product(fused.base(), fused.product(0))


def test_predictions_are_those_of_pytorch_in_every_batch_and_thread(
    fused: Checkpoint, converted_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moleflow.model.detector.cache_folder", lambda: converted_folder)
    path = tmp_path / "factory.safetensors"
    path.write_bytes(fused.path.read_bytes())
    set_area(path, "nut", Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),)))
    engines = ("openvino", "torch")
    compiled, plain = (Detector.load(path, device="cpu", precision="fp32", engine=each) for each in engines)
    expected = plain.predict(IMAGES) * 3
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(lambda image: compiled.predict([image])[0], IMAGES * 2)
        found = [*compiled.predict(IMAGES), *alone]
    for one, other in zip(found, expected, strict=True):
        assert one.task.name == other.task.name
        assert (one.inspected is not None) == (other.inspected is not None) == (one.task.name == "nut")
        assert one.score == pytest.approx(other.score, rel=1e-3)
        # Stages are rounded to bf16 for the memory, and now and then to the other neighbour.
        assert np.allclose(one.grid_map, other.grid_map, rtol=1e-2, atol=1e-2 * np.abs(other.grid_map).max())
