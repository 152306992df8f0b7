"""`moleflow serve`: answer over HTTP. Its options are the service's settings."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from moleflow.service.settings import Settings, load_settings

__all__ = ["serve"]


def serve(**given: str | None) -> None:
    """Serve a checkpoint: POST /predict, GET /tasks, a page at /, metrics at /metrics, documentation at /docs.

    Every option can be set by environment too: MOLEFLOW_ and its name, as in MOLEFLOW_MAX_BATCH_SIZE; an option wins.
    """
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.service.server import serve as run

    settings = load_settings(**given)
    configure_threads()
    run(settings)


def _parameters() -> Iterator[inspect.Parameter]:
    """One parameter for each setting; the settings themselves say what is valid."""
    for name, field in Settings.model_fields.items():
        text = _help(field)
        argument = typer.Argument(metavar="CHECKPOINT", help=f"{text} (Or MOLEFLOW_CHECKPOINT.)")
        option = typer.Option(help=text, metavar="VALUE")
        annotation = Annotated[str | None, argument if name == "checkpoint" else option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: FieldInfo) -> str:
    """What the setting means, and its default if it is one that can be written down."""
    text = f"{str(field.description)[0].upper()}{str(field.description)[1:]}."
    default: Any = field.default
    if field.is_required() or default in (None, "", ()) or field.default_factory is not None:
        return text
    return f"{text} (default: {default.human_readable() if isinstance(default, ByteSize) else default})"


serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
