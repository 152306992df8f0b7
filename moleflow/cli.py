"""The command line: one command with subcommands; heavy imports wait until a subcommand needs them."""

import os
import sys

import typer

from model.memory import keep_freed_memory
from model.threads import prepare_threads
from moleflow.commands import ablate, demo, evaluate, inspect, predict, serve, summarise, train

__all__ = ["app", "main"]

app = typer.Typer(
    name="moleflow",
    help="One endpoint that finds defects on any product it has learned.\n\n"
    "Learn products one after another from pictures of good parts, then serve them all from one checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="train")(train.train)
app.command(name="inspect")(inspect.inspect)
app.command(name="evaluate")(evaluate.evaluate)
app.command(name="summarise")(summarise.summarise)
app.command(name="predict")(predict.predict)
app.command(name="serve")(serve.serve)
app.command(name="demo")(demo.demo)
app.command(name="ablate")(ablate.ablate)

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def main() -> None:
    """Run the command; every expected error is one line on standard error and exit status 1."""
    prepare_threads()
    keep_freed_memory()
    from model.errors import MoLEFlowError

    try:
        # Typer turns an interrupt into "Aborted!"; standalone mode off lets the commands say what is kept.
        status = app(standalone_mode=False)
    except MoLEFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (as with `| head`); closing quietly is what it expects.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # a usage error: click prints it with the command's usage
        sys.exit(error.exit_code)
    sys.exit(status if isinstance(status, int) else 0)
