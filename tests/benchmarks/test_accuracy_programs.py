"""The programs that need data run on two tiny products, and their tables have what they promise."""

from pathlib import Path

import pytest
from tiny_model import PLUGIN, tiny_checkpoint

from benchmarks.accuracy import forgetting, verdicts


def test_a_checkpoint_forgets_nothing_against_itself_and_a_changed_one_does(
    judged_products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("bolt", "nut")
    one = tiny_checkpoint(tmp_path / "one.safetensors", names=names).path
    other = tiny_checkpoint(tmp_path / "other.safetensors", names=tuple(reversed(names))).path
    options = ["--data", str(judged_products), "--category", "bolt", "--plugin", str(PLUGIN)]
    assert forgetting.main([str(one), str(one), *options]) == 0
    assert "0 of 4 test images differ" in capsys.readouterr().out
    assert forgetting.main([str(one), str(other), *options]) == 1
    assert "tensors DIFFER" in capsys.readouterr().out


def test_verdicts_are_counted_by_product_and_together(
    judged_products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", names=("bolt", "nut")).path
    assert verdicts.main([str(path), str(judged_products), "--plugin", str(PLUGIN), "--altered"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines if not line.startswith("  ")] == ["bolt", "nut", "all"]
    for rate in ("0.01", "0.05"):
        rows = [line for line in lines if line.startswith(f"  calibrated {rate}")]
        assert len(rows) == 3
        assert all("altered" in row for row in rows)
