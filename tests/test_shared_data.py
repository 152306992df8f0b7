"""The whole way on real images with a user's backbone: train two products, add a third, predict.

Needs the data and weights that lie beside the checkout, and is skipped where they do not.
"""

import json
from pathlib import Path

import pytest
from forked import ROOT, Finished, Processes, moleflow_code

SHARED = ROOT.parent / "shared"
PLUGIN = SHARED / "weights" / "stand_in.py"
FIRST, LATER = ("cookie", "pa_brg01_rl"), "pa_gla01_tl"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not PLUGIN.is_file(), reason="there is no ../shared with data and weights beside this checkout"),
]


def moleflow(processes: Processes, *arguments: object) -> Finished:
    return processes.run(moleflow_code(*arguments))


@pytest.fixture(scope="module")
def checkpoint(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cookies and two printed papers, an epoch of the small flow on the plugin's ResNet-50 at half their size."""
    path = tmp_path_factory.mktemp("shared") / "factory.safetensors"
    common = ("train", SHARED / "data", "--checkpoint", path, "--plugin", PLUGIN, "--epochs", 1, "--folds", 1)
    network = ("--preset", "small", "--backbone", "resnet50_v1", "--image-size", 128)
    tasks = [word for name in FIRST for word in ("--task", name)]
    for done in (moleflow(processes, *common, *network, *tasks), moleflow(processes, *common, "--task", LATER)):
        assert done.status == 0, done.stderr
    return path


def test_real_images_are_routed_to_their_products(processes: Processes, checkpoint: Path) -> None:
    products = (*FIRST, LATER)
    images = [image for name in products for image in sorted((SHARED / "data" / name / "test" / "good").iterdir())[:4]]
    done = moleflow(processes, "predict", checkpoint, *images, "--json", "--plugin", PLUGIN)
    assert done.status == 0, done.stderr
    found = [json.loads(line)["task"]["name"] for line in done.stdout.splitlines()]
    assert found == [name for name in products for _ in range(4)]


def test_a_checkpoint_with_a_users_backbone_says_that_it_needs_the_plugin(
    processes: Processes, checkpoint: Path
) -> None:
    done = moleflow(processes, "predict", checkpoint, "x.png")
    assert done.status == 1
    assert "--plugin" in done.stderr
    assert "Traceback" not in done.stderr
