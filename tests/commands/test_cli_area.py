"""`moleflow area` sets, shows, calibrates and clears the inspected area of a product."""

from pathlib import Path

import numpy as np
import pytest
from forked import Finished, Processes, moleflow_code
from PIL import Image
from tiny_model import PLUGIN, tiny_checkpoint, write_product

from moleflow.model.store.checkpoint import Checkpoint

LEFT_HALF = "0,0 0.5,0 0.5,1 0,1"


def run(processes: Processes, *arguments: object) -> Finished:
    return processes.run(moleflow_code("area", *arguments, "--plugin", PLUGIN, "--device", "cpu"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors").path


def test_an_area_is_drawn_shown_calibrated_and_cleared(processes: Processes, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    assert run(processes, path, "nut").stdout == "nut inspects the whole image\n"
    done = run(processes, path, "nut", "--ignore", LEFT_HALF)
    assert done.status == 0, done.stderr
    first, second = done.stdout.splitlines()
    area = "nut inspects 50% of the image (8 of 16 patches), with thresholds"
    assert first.startswith(f"{area} from before it had this area; threshold ")
    assert second.startswith("at most 0.01 of good images alarm; --good DATA")
    write_product(tmp_path / "data", "nut", 1, count=12)
    done = run(processes, path, "nut", "--good", tmp_path / "data")
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(f"{area} of 12 good images within the area; threshold ")
    assert run(processes, path, "nut").stdout == f"{area} of 12 good images within the area\n"
    shown = processes.run(moleflow_code("inspect", path))
    assert area in " ".join(shown.stdout.split())
    assert run(processes, path, "nut", "--clear").stdout.startswith("nut inspects the whole image; threshold ")
    assert path.read_bytes() == before


def test_a_mask_image_is_inspected_where_it_is_bright(processes: Processes, path: Path, tmp_path: Path) -> None:
    mask = np.zeros((60, 80, 3), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    done = run(processes, path, "nut", "--mask", tmp_path / "mask.png")
    assert done.status == 0, done.stderr
    area = Checkpoint.open(path).header.tasks[1].area
    assert area is not None
    assert area.patches == ("0011",) * 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nut", "--ignore", "0,0 1,1"), "ignore.0: a polygon needs at least 3 points; this one has 2"),
        (("nut", "--ignore", "0,0 1,0 1,2"), "ignore.0.2.1: Input should be less than or equal to 1"),
        (("nut", "--ignore", "0,0 1,0 1,nan"), "ignore.0.2.1: Input should be a finite number"),
        (("nut", "--ignore", "0,0 one"), "'0,0 one' is no polygon; write its corners as x,y"),
        (("nut", "--ignore", "0,0 1,0 1,1 0,1"), "inspects 0 of 4 × 4 patches"),
        (("nut", "--clear", "--ignore", LEFT_HALF), "give one of"),
        (("nut", "--good", "."), "product 'nut' has no area that good images could calibrate"),
        (("cog", "--ignore", LEFT_HALF), "No product named 'cog' was learned"),
        (("nut", "--mask", "missing.png"), "missing.png"),
    ],
)
def test_what_is_no_area_is_an_error_and_changes_nothing(
    processes: Processes, path: Path, arguments: tuple[str, ...], says: str
) -> None:
    before = path.read_bytes()
    done = run(processes, path, *arguments)
    assert (done.status, done.stdout) == (1, "")
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert path.read_bytes() == before


def test_training_refuses_areas_that_are_none_before_it_begins(
    processes: Processes, path: Path, tmp_path: Path
) -> None:
    before = path.read_bytes()
    write_product(tmp_path / "data", "cog", 1, count=3)
    (tmp_path / "areas.json").write_text('{"cog": {"ignore": [[[0, 0], [1, 1]]]}}')
    done = processes.run(
        moleflow_code(
            *("train", tmp_path / "data", "--checkpoint", path, "--areas", tmp_path / "areas.json"),
            *("--plugin", PLUGIN, "--device", "cpu"),
        )
    )
    assert done.status == 1
    assert "cog.ignore.0: a polygon needs at least 3 points" in done.stderr
    assert path.read_bytes() == before
