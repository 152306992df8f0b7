"""Everything that the documentation shows in Python runs: docstrings of the public API, code of the pages, examples."""

import doctest
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint, tiny_config, write_product, write_tested_product

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Prediction, Refusal
from moleflow.service.api.app import create_app
from moleflow.service.listening import bind
from moleflow.service.server import make_server
from moleflow.service.settings import Settings
from moleflow.training.config import PRESETS, Preset, TrainingConfig
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.evaluation.evaluate import evaluate

ROOT = Path(__file__).parents[1]
ADDRESS = "127.0.0.1:8000"
WITH_EXAMPLES = (Detector, Prediction, Refusal, Checkpoint, train_tasks, evaluate)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [
    pytest.param(code, id=f"{page.relative_to(ROOT)} {number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: a checkpoint, an image of one of its products, test images, and new products."""
    root = tmp_path_factory.mktemp("examples")
    tiny_checkpoint(root / "factory.safetensors")
    Image.fromarray(product_image(0, 300, 48)).save(root / "part.png")
    write_tested_product(root / "tested", "bolt", 0)
    write_tested_product(root / "tested", "nut", 1)
    for kind, name in enumerate(("washer", "bracket")):
        write_product(root / "data", name, kind)
    return root


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples run where these files are, and the preset for CPUs is a tiny one."""
    tiny = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, folds=2)
    monkeypatch.setitem(PRESETS, "small", Preset(name="small", description="", model=tiny_config(), training=tiny))
    monkeypatch.chdir(folder)
    yield
    (folder / "new.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("documented", WITH_EXAMPLES, ids=lambda each: each.__name__)
def test_the_examples_of_a_docstring_do_what_they_say(documented: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = sys.modules[documented.__module__]
    tests = doctest.DocTestFinder(recurse=False).find(documented, module=module)
    assert sum(len(test.examples) for test in tests) > 0
    runner = doctest.DocTestRunner()
    failed = sum(runner.run(test).failed for test in tests)
    assert failed == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The address of a service of the checkpoint."""
    chosen = Settings(
        checkpoint=folder / "factory.safetensors", plugin=str(PLUGIN), log_level="critical", cpu_workers=1
    )
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = make_server(create_app(chosen, on_ready=lambda _: ready.set()), chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(120)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.mark.parametrize("code", CODE)
def test_python_code_of_the_documentation_runs(
    code: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if ADDRESS in code:
        code = code.replace(ADDRESS, request.getfixturevalue("url").removeprefix("http://"))
    exec(compile(code, "documentation", "exec"), {})
    assert "bolt" in capsys.readouterr().out


def test_the_example_lists_what_is_not_good_in_a_folder(
    folder: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "predict_folder.py"))["main"]
    (folder / "sent").mkdir()
    (folder / "sent" / "bad.png").write_bytes(b"no image")
    assert main(["sent", "--url", url]) == 1
    out = capsys.readouterr().out
    assert "sent/bad.png: The image cannot be read (415)" in out
    assert out.endswith("1 images, 1 listed\n")


def test_the_readme_uses_the_detector_in_ten_lines() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert code is not None
    assert "Detector" in code[1]
    assert len([line for line in code[1].splitlines() if line]) == 10


def test_the_example_trains_predicts_and_writes_overlays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "train_predict_look.py"))["main"]
    main(["data", "data/washer/0.png", "data/bracket/1.png", "--checkpoint", "new.safetensors", "--epochs", "1"])
    names = [task.name for task in Checkpoint.open("new.safetensors").header.tasks]
    assert names == ["bracket", "washer"]
    out = capsys.readouterr().out
    assert "data/washer/0.png: " in out
    assert "data/bracket/1.png: " in out
    for path in (folder / "overlays").iterdir():
        with Image.open(path) as overlay:
            assert overlay.size == (32, 32)
    assert {path.name for path in (folder / "overlays").iterdir()} == {"0_overlay.png", "1_overlay.png"}
