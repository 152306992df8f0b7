"""Features by OpenVINO are those of PyTorch, and a network is converted once."""

import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_model import FUSED, product_image, tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.errors import BackboneError
from moleflow.model.features import compiled
from moleflow.model.store.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")

IMAGES = [product_image(kind, 80 + kind) for kind in (0, 2, 1, 0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("moleflow.model.detector.cache_folder", lambda: folder)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint with memories, which need pooled stages too."""
    return tiny_checkpoint(tmp_path_factory.mktemp("fused") / "fused.safetensors", config=tiny_config(scoring=FUSED))


def load(checkpoint: Checkpoint, engine: str) -> Detector:
    return Detector.load(checkpoint.path, device="cpu", precision="fp32", engine=engine)


@pytest.mark.parametrize("kind", ["checkpoint", "fused"])
def test_predictions_are_those_of_pytorch(kind: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(kind)
    found, expected = (load(checkpoint, engine).predict(IMAGES) for engine in ("openvino", "torch"))
    for one, other in zip(found, expected, strict=True):
        assert one.task.name == other.task.name
        assert one.score == pytest.approx(other.score, rel=1e-3)
        # Stages are rounded to bf16 for the memory, and now and then to the other neighbour.
        assert np.allclose(one.grid_map, other.grid_map, rtol=1e-2, atol=1e-2 * np.abs(other.grid_map).max())


def test_an_image_has_the_same_features_in_every_batch_and_thread(checkpoint: Checkpoint) -> None:
    detector = load(checkpoint, "openvino")
    expected = [each.grid_map for each in detector.predict(IMAGES)]
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(lambda image: detector.predict([image])[0].grid_map, IMAGES * 5)
    for found, other in zip(alone, expected * 5, strict=True):
        assert np.allclose(found, other, rtol=1e-5, atol=1e-4)


def test_a_network_is_converted_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(checkpoint, "openvino").predict(IMAGES)
    monkeypatch.setattr(compiled, "_converted", lambda *_: pytest.fail("it was converted again"))
    for one, other in zip(load(checkpoint, "openvino").predict(IMAGES), expected, strict=True):
        assert np.array_equal(one.grid_map, other.grid_map)


def test_other_weights_are_another_network(checkpoint: Checkpoint, folder: Path) -> None:
    load(checkpoint, "openvino")
    before = set(folder.glob("*.xml"))
    other = Checkpoint.open(checkpoint.path)
    other.header = other.header.model_copy(update={"backbone_sha256": "0" * 64})
    Detector(other, device="cpu", precision="fp32", engine="openvino")
    assert len(set(folder.glob("*.xml")) - before) == 1


def test_a_damaged_file_is_made_again(checkpoint: Checkpoint, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(checkpoint, "openvino")
    for path in folder.glob("*.xml"):
        path.write_text("<net")
    assert load(checkpoint, "openvino").predict(IMAGES[:1])
    assert "cannot be read and is made again" in caplog.text


def test_without_a_place_for_files_it_works_and_says_so(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("moleflow.model.detector.cache_folder", lambda: tmp_path / "file" / "folder")
    assert load(checkpoint, "openvino").predict(IMAGES[:1])
    assert "is not kept" in caplog.text


def test_a_network_that_cannot_be_exported_is_an_error_that_says_what_to_do(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a branch depends on data")

    monkeypatch.setattr(compiled, "_read", lambda *_: None)
    monkeypatch.setattr(compiled, "_converted", fail)
    with pytest.raises(BackboneError, match=r"OpenVINO cannot run the backbone \(.*depends on data\); use engine t"):
        load(checkpoint, "openvino")


def test_converting_leaves_logging_as_it_was(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    monkeypatch.setattr("moleflow.model.detector.cache_folder", lambda: tmp_path)
    load(checkpoint, "openvino")
    assert (root.handlers, root.filters) == before
    assert capfd.readouterr().err == ""


def test_converted_networks_are_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.cache_folder() == tmp_path / "moleflow" / "openvino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled.cache_folder() == tmp_path / ".cache" / "moleflow" / "openvino"
