"""What users install: the wheel holds the package and nothing else, and works far from the checkout."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import ENVIRONMENT, ROOT
from tiny_model import write_product

FOLDERS = ("model", "training", "service")
PATIENCE_SECONDS = 120

FOREIGN = "model"
"""The user's own module is named as a folder of the checkout is."""

NETWORK = """
from timm.models.resnet import BasicBlock, ResNet

class Net(ResNet):
    def __init__(self, **options):
        super().__init__(BasicBlock, (1, 1, 1, 1), channels=(8, 12, 20, 24), **options)
"""

PLUGIN = f"""
from {FOREIGN} import Net
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

default_cfgs = generate_default_cfgs({{
    "own_network.fixed": {{
        "url": "", "input_size": (3, 32, 32), "num_classes": 4, "pool_size": (1, 1), "first_conv": "conv1",
        "classifier": "fc", "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "interpolation": "bilinear",
        "crop_pct": 1.0,
    }}
}})

@register_model
def own_network(pretrained=False, **options):
    return build_model_with_cfg(Net, "own_network", False, **options)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves files in the folder that it builds, and packs those of an earlier build."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for folder in ("moleflow", *FOLDERS):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip(source, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, ".")
    (path,) = built.iterdir()
    return path


def clean_environment() -> dict[str, str]:
    """Without the variables that would lead back to the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MOLEFLOW_"))}


def pip(folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Installed:
    """A fresh environment that holds the wheel, and a user's folder with a plugin to work in."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.environment = root / "environment"
        self.folder = root / "project"
        venv.create(self.environment, symlinks=True)
        pip(root, "--python", self.environment / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
        # The dependencies are borrowed. A folder that is named in a .pth file has its own .pth files ignored, so an
        # editable installation of the checkout stays unseen.
        (packages,) = self.environment.glob("lib/python*/site-packages")
        (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.folder.mkdir()
        (self.folder / f"{FOREIGN}.py").write_text(NETWORK)
        (self.folder / "plugin.py").write_text(PLUGIN)

    def start(self, program: str, *arguments: object) -> "subprocess.Popen[str]":
        """One of the environment's programs, started in the user's folder."""
        return subprocess.Popen(
            [str(self.environment / "bin" / program), *map(str, arguments)],
            cwd=self.folder,
            env=clean_environment() | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str, *arguments: object) -> str:
        """What it prints; it must succeed."""
        with self.start(program, *arguments) as process:
            out, errors = process.communicate()
        assert process.returncode == 0, errors
        return out

    @contextmanager
    def serving(self, *arguments: object) -> Iterator[str]:
        """The URL of ``moleflow serve``, which SIGTERM must end in order."""
        with self.start("moleflow", "serve", *arguments, "--port", 0, "--lame-duck-seconds", 0) as process:
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                assert "Serving" in said, process.communicate(timeout=PATIENCE_SECONDS)[1]
                yield said.split()[-1]
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=PATIENCE_SECONDS)
                assert process.returncode in {0, -signal.SIGTERM}
            finally:
                process.kill()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_every_module_and_page_once_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = file.namelist()
    version = importlib.metadata.version("moleflow")
    assert {name.partition("/")[0] for name in packed} == {"moleflow", f"moleflow-{version}.dist-info"}
    places = {"moleflow": ROOT / "moleflow"} | {f"moleflow/{folder}": ROOT / folder for folder in FOLDERS}
    wanted = [
        f"{place}/{path.relative_to(folder).as_posix()}"
        for place, folder in places.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert "moleflow/service/api/page/index.html" in wanted
    assert sorted(name for name in packed if name.startswith("moleflow/")) == sorted(wanted)


def test_the_installed_package_is_the_one_that_runs(installed: Installed) -> None:
    place = installed.run("python", "-c", "import moleflow.model; print(moleflow.model.__file__)")
    assert Path(place.strip()).is_relative_to(installed.environment)


def answer(url: str, image: Path | None = None) -> dict:
    """The JSON of a GET, or of a POST of an image."""
    data = None if image is None else image.read_bytes()
    request = urllib.request.Request(url, data, {"Content-Type": "image/png"} if data else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        return json.load(response)


def test_a_plugin_imports_its_own_model_and_its_network_is_learned_and_served(installed: Installed) -> None:
    data = installed.folder / "data"
    for kind, name in enumerate(("bolt", "nut")):
        write_product(data, name, kind)
    options = ("--preset", "small", "--backbone", "own_network", "--image-size", 32, "--epochs", 1, "--folds", 1)
    plugin = ("--plugin", "plugin.py", "--device", "cpu")
    installed.run("moleflow", "train", data, "--checkpoint", "own.safetensors", *options, *plugin)
    with installed.serving("own.safetensors", *plugin) as url:
        assert [task["name"] for task in answer(f"{url}/tasks")["tasks"]] == ["bolt", "nut"]
        assert answer(f"{url}/predict", data / "nut" / "0.png")["task"]["name"] == "nut"


@pytest.mark.demo
def test_the_demonstration_is_learned_and_served(installed: Installed) -> None:
    checkpoint = installed.run("moleflow", "demo", "--no-serve").strip()
    with installed.serving(checkpoint) as url:
        assert [task["name"] for task in answer(f"{url}/tasks")["tasks"]] == ["brick", "grass", "gravel"]
        scratched = installed.folder / "demo" / "images" / "gravel" / "test" / "scratch" / "000.png"
        found = answer(f"{url}/predict", scratched)
        assert (found["task"]["name"], found["is_anomalous"]) == ("gravel", True)
