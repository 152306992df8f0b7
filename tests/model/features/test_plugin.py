"""Plugins are imported by name and by path; errors are one line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

from moleflow.model.errors import ConfigurationError
from moleflow.model.features.plugin import import_plugin

SOURCE = """
from timm.models import register_model
@register_model
def {name}(pretrained=False, **options):
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; modules imported by a test are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def put(path: Path, name: str, code: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE.format(name=name) + code)


def test_a_module_in_the_current_folder_is_found_by_its_name(here: Path) -> None:
    put(here / "plug_named.py", "net_named")
    import_plugin("plug_named")
    assert timm.is_model("net_named")


def test_a_package_and_a_module_in_it_are_found_by_name(here: Path) -> None:
    put(here / "plug_package" / "__init__.py", "net_package", "from . import inner\n")
    put(here / "plug_package" / "inner.py", "net_inner")
    put(here / "plug_package" / "more.py", "net_more")
    import_plugin("plug_package")
    import_plugin("plug_package.more")
    assert timm.is_model("net_package")
    assert timm.is_model("net_inner")
    assert timm.is_model("net_more")


@pytest.mark.parametrize(
    "path", ["plug.py", "./plug", "./plug.py", "sub/plug.py", "sub/../plug.py", "sub/plug", "{}/plug.py"]
)
def test_every_form_of_path_is_accepted(here: Path, path: str) -> None:
    name = f"net_{abs(hash(path))}"
    put(here / "plug.py", name)
    put(here / "sub" / "plug.py", name)
    import_plugin(path.format(here))
    assert timm.is_model(name)


def test_a_path_may_start_with_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    put(here / "plug.py", "net_home")
    monkeypatch.chdir("/")
    import_plugin("~/plug.py")
    assert timm.is_model("net_home")


def test_a_package_is_imported_by_the_path_of_its_folder(here: Path) -> None:
    put(here / "sub" / "plug" / "__init__.py", "net_folder", "from .inner import VALUE\n")
    put(here / "sub" / "plug" / "inner.py", "net_folder_inner", "VALUE = 1\n")
    import_plugin("sub/plug/")
    assert timm.is_model("net_folder_inner")


def test_a_plugin_may_import_modules_beside_it(here: Path) -> None:
    put(here / "sub" / "plug.py", "net_neighbour", "import its_neighbour_module\n")
    put(here / "sub" / "its_neighbour_module.py", "net_of_neighbour")
    import_plugin("sub/plug.py")
    assert timm.is_model("net_of_neighbour")


def test_a_folder_that_is_not_a_package_is_refused(here: Path) -> None:
    (here / "plug").mkdir()
    with pytest.raises(ConfigurationError, match=r"not a package: it has no __init__\.py"):
        import_plugin("./plug")


@pytest.mark.parametrize("name", ["plug_missing", "./plug_missing.py", "no/such/file.py", "", ".relative", "..", "/"])
def test_a_missing_plugin_is_refused(here: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        import_plugin(name)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("\n\n1 / 0\n", r"ZeroDivisionError: .*plug_wrong\.py, line 3"),
        ("import math\ndef f(:\n", r"SyntaxError: .*plug_wrong\.py, line 2"),
        ("def f():\n    raise OSError('x')\nf()\n", r"OSError: x, in .*plug_wrong\.py, line 2"),
        ("import a_module_that_is_not_there\n", r"ModuleNotFoundError: .*plug_wrong\.py, line 1\); fix the plugin"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError"),
        ("def f(): f()\nf()\n", "RecursionError"),
    ],
)
@pytest.mark.parametrize("given", ["plug_wrong", "plug_wrong.py"])
def test_an_error_in_a_plugin_is_reported_with_its_line(here: Path, code: str, expected: str, given: str) -> None:
    (here / "plug_wrong.py").write_text(code)
    for _ in range(2):  # the second time must not find a half-imported module
        with pytest.raises(ConfigurationError, match=expected):
            import_plugin(given)


def test_a_plugin_that_exits_is_an_error(here: Path) -> None:
    (here / "plug_exits.py").write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(ConfigurationError, match=r"exits on import .*sys\.exit\(0\).*plug_exits\.py, line 3"):
        import_plugin("plug_exits")


@pytest.mark.parametrize("name", ["model", "training", "service"])
def test_a_plugins_own_modules_may_have_the_names_of_our_packages(here: Path, name: str) -> None:
    put(here / f"{name}.py", f"net_of_{name}")
    (here / f"plug_{name}.py").write_text(f"import {name}\nassert {name}.__file__ == {str(here / name) + '.py'!r}\n")
    import_plugin(f"plug_{name}.py")
    assert timm.is_model(f"net_of_{name}")


def test_a_name_that_matches_two_modules_is_ambiguous(here: Path) -> None:
    put(here / "json.py", "net_json")
    with pytest.raises(ConfigurationError, match="is ambiguous: .* or .*json.py; pass the path"):
        import_plugin("json")


def test_a_fifo_does_not_block(here: Path) -> None:
    os.mkfifo(here / "plug.py")
    with pytest.raises(ConfigurationError, match="a FIFO or a device"):
        import_plugin("plug.py")


def test_the_plugins_folder_shadows_no_installed_module(here: Path) -> None:
    put(here / "plug_last.py", "net_last", "import colorsys\n")
    (here / "colorsys.py").write_text("raise AssertionError('taken for the installed one')\n")
    sys.modules.pop("colorsys", None)
    import_plugin("plug_last")
    assert timm.is_model("net_last")
