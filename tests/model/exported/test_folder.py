"""An exported folder that is damaged, incomplete or of another version is refused, with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from moleflow.model.errors import (
    CheckpointDigestError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    ConfigurationError,
)
from moleflow.model.exported.detector import ExportedDetector
from moleflow.model.exported.folder import ExportedFolder
from moleflow.model.loading import load_detector
from moleflow.model.store.checkpoint import Checkpoint


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "factory"))


def rewrite(folder: Path, change: Callable[[Any], None]) -> None:
    """Change the manifest."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_it_tells_what_it_was_made_from(folder: Path, source: Checkpoint) -> None:
    opened = ExportedFolder.open(folder)
    opened.verify()
    assert opened.manifest.header == source.header
    assert opened.manifest.checkpoint.digest == source.info.digest
    assert opened.info.name == "factory"


def test_whoever_may_read_new_files_may_read_all_of_it(folder: Path, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {usual.stat().st_mode}


def test_calibrations_are_those_of_the_checkpoint(folder: Path, source: Checkpoint) -> None:
    for index, found in enumerate(ExportedFolder.open(folder).calibrations()):
        expected = source.profile(index).calibration
        assert found.scores.threshold(0.001) == expected.scores.threshold(0.001)
        assert found.distances.median == expected.distances.median


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="make one with `moleflow export CHECKPOINT "):
        ExportedFolder.open(tmp_path / "none")


def test_a_folder_without_a_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match=r"is not an exported folder: its manifest.json cannot be read"):
        load_detector(tmp_path)


def test_a_missing_or_cut_file_is_an_error_at_once(copy: Path) -> None:
    cut = copy / "experts" / "2.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(CheckpointFormatError, match=r"file 'experts/2.bin' of .* cannot be used \(it has .* bytes"):
        ExportedFolder.open(copy)
    cut.unlink()
    with pytest.raises(CheckpointFormatError, match=r"\(No such file.*\); copy the whole folder again, or export the"):
        ExportedFolder.open(copy)


@pytest.mark.parametrize("name", ["features.bin", "router.xml", "calibrations.safetensors"])
def test_a_changed_file_is_found_before_it_is_used(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CheckpointDigestError, match=f"file '{name}' of .* differs from what was written"):
        ExportedDetector.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format_version=2), "format version 2; this program reads 1"),
        (lambda document: document["header"].update(format_version=99), "format version 99"),
    ],
)
def test_another_version_is_told_with_what_to_do(copy: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(CheckpointVersionError, match=f"{message}; use the MoLE-Flow version that wrote it, or export"):
        ExportedFolder.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("header"), "no format_version or no header"),
        (lambda document: document["header"]["tasks"][0].update(name="../x"), "tasks.0.name"),
        (lambda document: document["files"].pop("router.bin"), "see 'router.bin'"),
        (lambda document: document["files"].update({"../x": document["files"]["router.bin"]}), "see '../x'"),
        (lambda document: document["files"]["router.bin"].update(bytes="1"), "files.router.bin.bytes"),
        (lambda document: document.update(graphs="other"), "graphs: "),
    ],
)
def test_a_broken_manifest_is_an_error_that_names_the_place(
    copy: Path, change: Callable[[Any], None], message: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(CheckpointFormatError, match=r"manifest.json of .* is broken") as error:
        ExportedFolder.open(copy)
    assert message in str(error.value)


def test_calibrations_that_do_not_calibrate_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ExportedFolder.open(folder)
    arrays = safetensors.numpy.load(opened.read("calibrations.safetensors"))
    del arrays["1.peaks"]
    monkeypatch.setattr(opened, "read", lambda name: safetensors.numpy.save(arrays))
    with pytest.raises(CheckpointFormatError, match=r"does not calibrate every product \('1.peaks'\)"):
        opened.calibrations()


@pytest.mark.parametrize("option", [{"device": "cuda"}, {"precision": "bf16"}, {"engine": "torch"}])
def test_what_a_folder_cannot_do_is_an_error(folder: Path, option: dict[str, Any]) -> None:
    (name, value), *_ = option.items()
    with pytest.raises(ConfigurationError, match=f"{name} cannot be '{value}' for the exported folder"):
        load_detector(folder, **option)


def test_without_openvino_the_error_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'moleflow\[openvino\]'"):
        load_detector(folder)
