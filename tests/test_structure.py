"""The layers stay apart: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"model": {"model"}, "training": {"model", "training"}, "service": {"model", "service"}}
PACKAGES = {"model", "training", "service", "moleflow"}


def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        assert imports(module) & PACKAGES <= ALLOWED[package], module


def test_the_model_knows_neither_http_nor_a_command_line() -> None:
    for module in (ROOT / "model").rglob("*.py"):
        assert not imports(module) & {"fastapi", "starlette", "uvicorn", "typer", "rich", "argparse"}, module


def test_importing_the_command_line_does_not_load_pytorch() -> None:
    import subprocess
    import sys

    code = "import sys, moleflow.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_decoding_an_upload_does_not_load_pytorch() -> None:
    import subprocess
    import sys

    code = "import sys, service.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
