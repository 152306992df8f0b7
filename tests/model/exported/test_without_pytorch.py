"""Where PyTorch is not installed, an exported folder is served, inspected and used for predictions."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from tiny_model import product_image

ROOT = Path(__file__).parents[3]

COMMAND = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "skimage", "jinja2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from moleflow.__main__ import main
main()
"""


def start(*arguments: object) -> "subprocess.Popen[str]":
    """The command, in a process that cannot import PyTorch."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"MOLEFLOW_ENGINE": "auto"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "nut.png"
    Image.fromarray(product_image(1, 81)).save(path)
    return path


def test_an_image_is_predicted(folder: Path, image: Path) -> None:
    with start("predict", folder, image, "--json") as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(out)["task"]["name"] == "nut"


def test_the_service_runs(folder: Path, image: Path) -> None:
    with start("serve", folder, "--port", 0, "--lame-duck-seconds", 0) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("Serving factory (bolt, nut, gear) on cpu at "), process.communicate()[1]
            request = urllib.request.Request(f"{said.split()[-1]}/predict?map=npy", image.read_bytes())
            request.add_header("Content-Type", "image/png")
            with urllib.request.urlopen(request, timeout=120) as response:
                found = json.load(response)
            assert (found["task"]["name"], found["verdict"]) == ("nut", "good")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) in {0, -signal.SIGTERM}
        finally:
            process.kill()


def test_the_folder_is_inspected(folder: Path) -> None:
    with start("inspect", folder, "--verify") as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "graphs for openvino, format 1" in " ".join(out.split())
    assert "from      factory.safetensors" in out


def test_what_needs_pytorch_says_how_to_install_it(tmp_path: Path) -> None:
    with start("inspect", tmp_path / "factory.safetensors") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: checkpoints and training need PyTorch (torch is not installed); run pip install")
