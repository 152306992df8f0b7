"""The cost of half precision is shown by product, and the gates look at bf16 products alone."""

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_checkpoint, write_tested_product

from benchmarks.accuracy import precision


def figures(image_auroc: float, pixel_ap: float) -> dict[str, float]:
    return {"image_auroc": image_auroc, "pixel_auroc": 90.0, "pixel_ap": pixel_ap, "aupro": 80.0}


@pytest.mark.parametrize(
    ("bf16", "expected"), [((99.0, 50.0), True), ((98.95, 50.25), True), ((98.8, 50.0), False), ((99.0, 49.6), False)]
)
def test_the_gates_hold_while_bf16_moves_no_figure_too_far_either_way(
    bf16: tuple[float, float], expected: bool
) -> None:
    stored = figures(50.0, 10.0)
    found = {"nut": {"fp32": figures(99.0, 50.0), "bf16": figures(*bf16), precision.WAYS[2]: stored}}
    assert all(gate.passed for gate in precision.gates(found)) is expected


def test_experts_are_rounded_as_a_checkpoint_that_stores_bf16_gives_them(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors").path
    exact, rounded = (kind.open(path).product(0).expert for kind in (precision.Checkpoint, precision.Rounded))
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16).float(), other)


def test_every_product_is_judged_in_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors").path
    name = precision.Checkpoint.open(path).header.tasks[0].name
    write_tested_product(tmp_path / "data", name, 0)
    precision.main([str(path), str(tmp_path / "data"), "--task", name])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {name}")]
    assert [row.split(" | ")[1] for row in rows] == list(precision.WAYS)
    assert not any("nan" in row for row in rows)
