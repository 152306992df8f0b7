"""Importing a user's module, which registers networks with timm."""

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
    """Import a plugin, given as the name of a module, or as the path of a ``.py`` file or of a package's folder.

    What is importable is found by its name, and so is what lies in the current folder. A path is imported under a name
    of its own, so that a file called as an installed module is neither hides it nor is taken for it. The folder that
    the plugin lies in is searched last for what the plugin imports.

    Raises:
        ConfigurationError: there is no such module or file, it is ambiguous, or its own code fails.
    """
    path = _path_of(module)
    folder = Path.cwd() if path is None else path.parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that nothing that is installed is hidden
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
            f"plugin {module!r} ends the program while it is imported (sys.exit({stop.code!r})){_place(stop)}; leave "
            "to `if __name__ == '__main__':` what it does as a program."
        ) from stop
    except Exception as error:  # a plugin is anybody's code and may raise anything; the cause is kept and shown
        raise ConfigurationError(
            f"plugin {module!r} cannot be imported ({type(error).__name__}: {one_line(error)}{_place(error)}); "
            f"{_advice(module, folder, error)}."
        ) from error


def _put_checkout_last() -> None:
    """Where MoLE-Flow runs from a checkout, let no folder beside the package hide a plugin's module of that name."""
    root = Path(moleflow.__file__).parents[1]
    if (root / "pyproject.toml").exists() and str(root) in sys.path:
        sys.path[:] = [*(entry for entry in sys.path if entry != str(root)), str(root)]


def _path_of(module: str) -> Path | None:
    """The file or the package's folder that ``module`` names by its path; nothing where it is a module's name."""
    if not (module.endswith(".py") or "/" in module or os.sep in module):
        return None
    path = Path(os.path.expanduser(module)).resolve()  # noqa: PTH111 - pathlib's raises where there is no such user
    if not path.exists() and path.with_name(path.name + ".py").exists():
        return path.with_name(path.name + ".py")
    return path


def _check_name(module: str, folder: Path) -> None:
    """Refuse a name that means one thing to Python and another in the current folder."""
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
        raise ConfigurationError(
            f"plugin {module!r} is both {found.origin} and {local}; give the path of the one that is meant."
        )


def _import_file(path: Path) -> None:
    # Under a name of its own: a file called as an installed module is must neither hide it nor be taken for it.
    name = f"moleflow_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = _spec(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
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
        raise ImportError(f"the folder {str(path)!r} is no package: it holds no __init__.py")
    return importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])


def _place(error: BaseException) -> str:
    """Where in the plugin's code an error came up."""
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
        return f"give an importable module or the path of a .py file; the current folder is {str(folder)!r}"
    if isinstance(error, FileNotFoundError) or not error.__traceback__:
        return "give an importable module or the path of a .py file"
    return "mend the plugin, or give an importable module or the path of a .py file"
