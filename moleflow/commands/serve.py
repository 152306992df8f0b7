"""`moleflow serve`: run the HTTP service. Its options are the settings of the service."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from moleflow.service.settings import Settings, load_settings

__all__ = ["serve"]


def serve(**given: str | None) -> None:
    """Serve a checkpoint or an exported folder: POST /predict, GET /tasks, a page at /, metrics at /metrics, /docs.

    Every option can also be set as an environment variable, such as MOLEFLOW_MAX_BATCH_SIZE; the option wins.
    """
    from moleflow.model.exported.folder import is_exported
    from moleflow.model.runtime.threads import configure_threads
    from moleflow.service.server import serve as run
    from moleflow.service.supervisor import supervise

    settings = load_settings(**given)
    if settings.processes > 1:
        supervise(settings)
        return
    if not is_exported(settings.checkpoint):
        configure_threads()
    run(settings)


def _parameters() -> Iterator[inspect.Parameter]:
    """One string parameter for each setting; validation is left to the settings."""
    for name, field in Settings.model_fields.items():
        text = _help(field)
        argument = typer.Argument(metavar="CHECKPOINT", help=f"{text} (Or MOLEFLOW_CHECKPOINT.)")
        option = typer.Option(help=text, metavar="VALUE")
        annotation = Annotated[str | None, argument if name == "checkpoint" else option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: FieldInfo) -> str:
    """The description of a setting, with its default if it has a fixed one."""
    text = f"{str(field.description)[0].upper()}{str(field.description)[1:]}."
    default: Any = field.default
    if field.is_required() or default in (None, "", ()) or field.default_factory is not None:
        return text
    return f"{text} (default: {default.human_readable() if isinstance(default, ByteSize) else default})"


serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
