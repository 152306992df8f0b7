"""Importing a user's module that registers networks with timm."""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.machinery import ModuleSpec
from pathlib import Path

import moleflow
from moleflow.model.errors import ConfigurationError, one_line

__all__ = ["import_plugin"]


def import_plugin(module: str) -> None:
    """Import a plugin: a module name, the path of a ``.py`` file, or the path of a package folder.

    Names are looked up on ``sys.path`` and in the current folder. A path is imported under a unique module name, so
    that it cannot shadow, or be shadowed by, an installed module. The plugin's own folder is appended to ``sys.path``.

    Raises:
        ConfigurationError: the plugin does not exist, is ambiguous, or fails on import.
    """
    path = _path_of(module)
    folder = Path.cwd() if path is None else path.parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it shadows nothing installed
        _put_checkout_last()
    try:
        if path is None:
            _check_name(module, folder)
            importlib.import_module(module)
        else:
            _import_file(path)
    except ConfigurationError:
        raise
    except SystemExit as stop:
        raise ConfigurationError(
            f"plugin {module!r} exits on import (sys.exit({stop.code!r})){_place(stop)}; move script code under "
            "`if __name__ == '__main__':`."
        ) from stop
    except Exception as error:  # a plugin can raise anything
        raise ConfigurationError(
            f"plugin {module!r} cannot be imported ({type(error).__name__}: {one_line(error)}{_place(error)}); "
            f"{_advice(module, folder, error)}."
        ) from error


def _put_checkout_last() -> None:
    """When running from a checkout, keep folders beside the package from shadowing a plugin of the same name."""
    root = Path(moleflow.__file__).parents[1]
    if (root / "pyproject.toml").exists() and str(root) in sys.path:
        sys.path[:] = [*(entry for entry in sys.path if entry != str(root)), str(root)]


def _path_of(module: str) -> Path | None:
    """The file or package folder if ``module`` is a path; ``None`` if it is a module name."""
    if not (module.endswith(".py") or "/" in module or os.sep in module):
        return None
    path = Path(os.path.expanduser(module)).resolve()  # noqa: PTH111 - pathlib's version raises for unknown users
    if not path.exists() and path.with_name(path.name + ".py").exists():
        return path.with_name(path.name + ".py")
    return path


def _check_name(module: str, folder: Path) -> None:
    """Refuse a name that exists both on ``sys.path`` and in the current folder."""
    first = module.partition(".")[0]
    local = next((path for path in (folder / f"{first}.py", folder / first / "__init__.py") if path.is_file()), None)
    if local is None or not first:
        return
    found = importlib.util.find_spec(first)
    if (
        found is not None
        and found.origin is not None
        and not (Path(found.origin).exists() and local.samefile(found.origin))
    ):
        raise ConfigurationError(f"plugin {module!r} is ambiguous: {found.origin} or {local}; pass the path instead.")


def _import_file(path: Path) -> None:
    name = f"moleflow_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = _spec(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise


def _spec(name: str, path: Path) -> ModuleSpec | None:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if not path.is_dir():
        if not path.is_file():
            raise ImportError("it is a FIFO or a device, not a file")
        return importlib.util.spec_from_file_location(name, path)
    if not (path / "__init__.py").is_file():
        raise ImportError(f"the folder {str(path)!r} is not a package: it has no __init__.py")
    return importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])


def _place(error: BaseException) -> str:
    """Where in the plugin's code an error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", in {error.filename}, line {error.lineno}"
    machinery = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen importlib")
    ]
    return f", in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _advice(module: str, folder: Path, error: Exception) -> str:
    """What to do about an import that failed."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and missing == module.partition(".")[0]:
        return f"pass an importable module or the path of a .py file; the current folder is {str(folder)!r}"
    if isinstance(error, FileNotFoundError) or not error.__traceback__:
        return "pass an importable module or the path of a .py file"
    return "fix the plugin, or pass an importable module or the path of a .py file"
