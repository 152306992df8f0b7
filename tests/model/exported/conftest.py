"""An exported folder of three tiny products with memories, made once."""

from pathlib import Path

import pytest
from tiny_model import FUSED, tiny_checkpoint, tiny_config

from moleflow.model.exporter.write import export_checkpoint
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.area import Outlines


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint; its last product has 12-bit images, and its second one inspects half of them."""
    config = tiny_config(scoring=FUSED, coupling_blocks=1, dia_blocks=1)
    path = tmp_path_factory.mktemp("source") / "factory.safetensors"
    tiny_checkpoint(path, config=config, white_levels=(None, None, 4095))
    return set_area(path, "nut", Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),)))


@pytest.fixture(scope="session")
def folder(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, exported for OpenVINO."""
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("exported") / "factory"
    export_checkpoint(source, out)
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs are kept beside the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
