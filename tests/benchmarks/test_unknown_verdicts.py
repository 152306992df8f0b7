"""What is refused of unknown and of learned products is counted as the detector refuses it."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import product_image, tiny_checkpoint

from benchmarks.accuracy import unknown_verdicts as benchmark
from moleflow.model.detector import Detector
from moleflow.model.verdict.results import Refusal

FOREIGN = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_it_refuses_what_the_detector_refuses(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", typical_background=20.0).path
    images = [FOREIGN, *(product_image(kind, seed) for kind in (0, 1, 2, 3) for seed in range(90, 93))]
    factory, detector = benchmark.Factory(path, None), Detector.load(path)
    (seen,) = factory.look(iter(images), None)
    expected = [isinstance(each, Refusal) for each in detector.predict(images)]
    assert (seen.novelty_score() > detector.unknown_limit).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    scored = detector.predict(images, refuse_unknown=False)
    assert seen.novelty_score().tolist() == pytest.approx([each.novelty_score for each in scored], rel=1e-3)


def test_every_category_is_counted_the_unlearned_ones_as_unknown(
    judged_products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", names=("bolt", "gear", "cog")).path
    assert benchmark.main([str(path), str(judged_products)]) == 0
    rows = {
        cells[1]: cells[2:5]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 6
    }
    assert all("%" in cell for cell in rows["bolt"])
    assert rows["bolt"][1].startswith("0.0%")  # its good images are known
    assert rows["nut"][1:] == ["–", "–"]  # it was not learned
