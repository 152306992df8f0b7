"""Predicting on two nodes: rows in Parquet files, the same as on one machine, and only for images that have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint
from two_nodes import Command, TwoNodes

from moleflow.folder.run import Request, predict_into
from moleflow.image_files import find_images
from moleflow.model.detector import Detector
from moleflow.model.images.decode import SUFFIXES

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

OPTIONS = ("--plugin", PLUGIN, "--precision", "fp32", "--engine", "torch", "--unknown-limit", 0)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or of all in a folder, without what differs between runs."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = [row for each in sorted(path.glob("*.parquet")) for row in parquet.read_table(each).to_pylist()]
    kept = ("path", "error_type", "verdict", "task_name", "score", "checkpoint_digest")
    return sorted(({name: row[name] for name in kept} for row in found), key=lambda row: row["path"])


def test_rows_are_those_of_one_machine_and_are_made_once(
    two_nodes: TwoNodes, command: Callable[..., Command], tmp_path: Path
) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors").path
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        Image.fromarray(product_image(number % 3, number)).save(images / f"{number}.png")
    (images / "bad.png").write_bytes(b"no image")

    def predict(*where: object) -> Command:
        ran = command("predict", path, images, *OPTIONS, *where)
        assert ran.finish() == 1  # because of the file that is no image
        return ran

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    detector = Detector.load(path, device="cpu", precision="fp32", unknown_limit=0)
    found = Request(
        find=lambda on_problem: find_images([images], SUFFIXES, on_problem),
        output=here / "rows.parquet",
        task=None,
        max_pixels=None,
        overlays=None,
        watch=False,
    )
    predict_into(detector, found)
    first = predict("--output", there, "--ray", two_nodes.address)
    assert "13 images; rows: " in first.printed
    assert "1 with an error" in first.printed
    one, other = rows(here), rows(there)
    assert [{**row, "score": None} for row in one] == [{**row, "score": None} for row in other]
    scores = [[row["score"] for row in each if row["score"] is not None] for each in (one, other)]
    assert np.allclose(scores[0], scores[1])

    Image.fromarray(product_image(0, 99)).save(images / "new.png")
    second = predict("--output", there, "--ray", two_nodes.address)
    assert "1 images; 13 had a row already; rows: " in second.printed
    assert len(rows(there)) == 14
