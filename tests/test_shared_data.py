"""The whole way on real images with a user's backbone: train two products, add a third, predict.

Needs the data and weights that lie beside the checkout, and is skipped where they do not.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
PLUGIN = SHARED / "weights" / "stand_in.py"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not PLUGIN.is_file(), reason="there is no ../shared with data and weights beside this checkout"),
]


def moleflow(*arguments: object) -> str:
    """Run the command as a user does; its standard output."""
    result = subprocess.run(
        [sys.executable, "-m", "moleflow", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cookies and two printed papers, an epoch of the small flow on the plugin's ResNet-50."""
    path = tmp_path_factory.mktemp("shared") / "factory.safetensors"
    common = ("--checkpoint", path, "--plugin", PLUGIN, "--epochs", 1, "--folds", 1)
    moleflow(
        "train",
        SHARED / "data",
        "--task",
        "cookie",
        "--task",
        "pa_brg01_rl",
        *common,
        "--preset",
        "small",
        "--backbone",
        "resnet50_v1",
    )
    moleflow("train", SHARED / "data", "--task", "pa_gla01_tl", *common)
    return path


def test_real_images_are_routed_to_their_products(checkpoint: Path) -> None:
    tasks = ("cookie", "pa_brg01_rl", "pa_gla01_tl")
    images = [image for task in tasks for image in sorted((SHARED / "data" / task / "test" / "good").iterdir())[:4]]
    lines = moleflow("predict", checkpoint, *images, "--json", "--plugin", PLUGIN).splitlines()
    assert [json.loads(line)["task"]["name"] for line in lines] == [task for task in tasks for _ in range(4)]


def test_a_checkpoint_with_a_users_backbone_says_that_it_needs_the_plugin(checkpoint: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "moleflow", "predict", str(checkpoint), "x.png"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 1
    assert "--plugin" in result.stderr
    assert "Traceback" not in result.stderr
