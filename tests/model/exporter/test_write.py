"""An exported folder appears complete, or not at all."""

from pathlib import Path

import pytest

from moleflow.model.errors import BackboneError, ConfigurationError
from moleflow.model.exporter import forms
from moleflow.model.exporter.write import export_checkpoint
from moleflow.model.store.checkpoint import Checkpoint


def test_an_existing_folder_is_never_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "theirs"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    with pytest.raises(ConfigurationError, match="exists already, .* choose a new name, or remove it first"):
        export_checkpoint(checkpoint, theirs.parent)
    assert theirs.read_text() == "years of work"


def test_a_failed_export_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: forms.Writer, path: Path, network: object) -> None:
        path.with_suffix(".xml").write_text("<net")
        raise BackboneError("no")

    monkeypatch.setattr(forms.Writer, "write", fail)
    with pytest.raises(BackboneError):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be written \(.*\); "):
        export_checkpoint(checkpoint, tmp_path / "file" / "out")
