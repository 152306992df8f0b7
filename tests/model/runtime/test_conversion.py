"""A module is converted for OpenVINO once, and kept in the user's cache."""

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moleflow.model.runtime import conversion
from moleflow.model.runtime.conversion import cache_folder, converted, kept_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")

FACTS = {"network": "linear"}


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.no_grad():
        return converted(nn.Linear(4, 2), [torch.zeros(2, 4)], [{0: torch.export.Dim("batch", min=1, max=8)}])


def never() -> Any:
    pytest.fail("it was made again")


def test_only_dynamic_axes_are_free(model: Any) -> None:
    assert str(model.inputs[0].partial_shape) == "[?,4]"


def test_a_model_is_made_once(model: Any, tmp_path: Path) -> None:
    kept_model(tmp_path, FACTS, lambda: model)
    assert kept_model(tmp_path, FACTS, never).inputs[0].partial_shape == model.inputs[0].partial_shape


def test_what_it_depends_on_is_another_model(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_model(tmp_path, FACTS, lambda: model)
    kept_model(tmp_path, {"network": "other"}, lambda: model)
    monkeypatch.setattr(conversion, "FORM", conversion.FORM + 1)
    kept_model(tmp_path, FACTS, lambda: model)
    assert len(list(tmp_path.glob("*.xml"))) == len(list(tmp_path.glob("*.bin"))) == 3


def test_a_damaged_file_is_made_again(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept_model(tmp_path, FACTS, lambda: model)
    for path in tmp_path.glob("*.xml"):
        path.write_text("<net")
    assert kept_model(tmp_path, FACTS, lambda: model) is model
    assert "cannot be read and is made again" in caplog.text
    kept_model(tmp_path, FACTS, never)


def test_without_a_place_for_files_it_works_and_says_so(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert kept_model(tmp_path / "file" / "folder", FACTS, lambda: model) is model
    assert "is not kept" in caplog.text


def test_converting_leaves_logging_as_it_was(
    model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        logging.getLogger().warning("of no interest")
        return model

    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    kept_model(tmp_path, FACTS, make)
    assert (root.handlers, root.filters) == before
    assert capfd.readouterr().err == ""


def test_converted_networks_are_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "moleflow" / "openvino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "moleflow" / "openvino"


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = (
        "from moleflow.model.runtime.openvino_import import import_openvino; import_openvino();"
        "from openvino.tools.ovc.telemetry_utils import tm; print(tm.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
