"""Damage to a checkpoint is found before it is used, and keeps only what it touches from being read."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import header_length, rewritten
from forked import Processes
from tiny_model import product_image, tiny_checkpoint, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.errors import (
    CheckpointDigestError,
    CheckpointFormatError,
)
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Failure

NAMES = ("bolt", "nut", "gear")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9999])
def test_a_truncated_file_is_refused(checkpoint: Checkpoint, tmp_path: Path, share: float) -> None:
    data = checkpoint.path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointFormatError, match="cut.safetensors' is not a complete safetensors file .*truncated"):
        Checkpoint.open(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "section", ["backbone", "base", "tasks.0.profile", "tasks.2.profile", "tasks.0.expert", "tasks.2.expert"]
)
def test_one_flipped_bit_in_a_tensor_is_found_before_it_is_used(
    checkpoint: Checkpoint, tmp_path: Path, section: str
) -> None:
    data = bytearray(checkpoint.path.read_bytes())
    begin = 8 + header_length(bytes(data))
    table = json.loads(data[8:begin])
    start, end = next(
        entry["data_offsets"]
        for key, entry in table.items()
        if key.startswith(f"{section}.") and entry["data_offsets"][0] < entry["data_offsets"][1]
    )
    data[begin + (start + end) // 2] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    opened = Checkpoint.open(tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointDigestError, match=f"section '{section}' of .*damaged"):
        opened.verify()
    if section.endswith("expert"):
        index = int(section.split(".")[1])
        detector = Detector.load(tmp_path / "damaged.safetensors", device="cpu")
        assert "damaged" in failure_of(detector, NAMES[index])
    else:
        with pytest.raises(CheckpointDigestError):
            Detector.load(tmp_path / "damaged.safetensors", device="cpu")


def failure_of(detector: Detector, name: str) -> str:
    """What is said instead of a verdict about an image of a product."""
    (found,) = detector.predict([product_image(0, 1)], [name])
    assert isinstance(found, Failure)
    return str(found.error)


def test_other_sections_than_the_damaged_one_can_still_be_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def damage(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        tensors["tasks.1.expert.adapter.beta_logit"][0] += 1

    damaged = Checkpoint.open(rewritten(checkpoint.path, tmp_path / "damaged.safetensors", damage))
    damaged.profile(1)
    damaged.product(0)
    with pytest.raises(CheckpointDigestError):
        damaged.product(1)


def test_a_damaged_expert_keeps_none_of_the_others_from_predicting(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def damage(document: dict, tensors: dict[str, torch.Tensor]) -> None:
        tensors["tasks.1.expert.adapter.beta_logit"][0] += 1

    detector = Detector.load(rewritten(checkpoint.path, tmp_path / "damaged.safetensors", damage), device="cpu")
    for _ in range(2):
        assert "section 'tasks.1.expert'" in failure_of(detector, "nut")
    assert detector.predict([product_image(2, 50)], ["gear"])[0].task.name == "gear"


@pytest.mark.parametrize("change", ["os.truncate(path, 0)", "os.truncate(path, os.stat(path).st_size // 2)", "cut()"])
def test_cutting_the_served_file_is_an_error_of_the_products_that_are_still_to_be_read(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes, change: str
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # In a process of its own: touching a map of a file that was cut would end it by a signal.
    finished = processes.run(
        "import os, sys\nsys.path.insert(0, 'tests/support')\nfrom tiny_model import PLUGIN, product_image\n"
        "from moleflow.model.detector import Detector\n"
        f"path = {str(path)!r}\n"
        "detector = Detector.load(path, device='cpu', plugin=str(PLUGIN))\n"
        "before = detector.predict([product_image(0, 5)], ['bolt'])[0].score\n"
        "def cut():\n"  # and write zeros over it: as long as before, of other bytes
        "    size = os.stat(path).st_size\n    os.truncate(path, 0)\n    os.truncate(path, size)\n"
        f"{change}\n"
        "assert detector.predict([product_image(0, 5)], ['bolt'])[0].score == before\n"
        "print(detector.predict([product_image(2, 5)], ['gear'])[0].error)\n"
    )
    assert finished.status == 0, finished.stderr
    assert ("differs from what was written" if change == "cut()" else "cannot be read") in finished.stdout


def test_a_detector_goes_on_with_the_file_that_it_opened_after_a_newer_one_took_its_place(
    checkpoint: Checkpoint, detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    opened = Detector.load(path, device="cpu", precision="fp32")
    tiny_checkpoint(path, names=("cog", "pin"), config=tiny_config(dim=8))
    assert [each.name for each in Checkpoint.open(path).header.tasks] == ["cog", "pin"]
    found, expected = (each.predict([product_image(2, 50)])[0] for each in (opened, detector))
    assert (found.grid_map == expected.grid_map).all()
