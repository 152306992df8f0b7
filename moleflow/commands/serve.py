"""`moleflow serve`: answer over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from moleflow.commands.options import FalseAlarmRate, Plugin, PrecisionName, UnknownLimit

__all__ = ["serve"]


def serve(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to serve. [env: MOLEFLOW_CHECKPOINT]")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1, this machine only]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 lets the system choose. [default: 8000]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [default: auto]")] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Type of the matrix products. [default: auto]")
    ] = None,
    plugin: Plugin = None,
    false_alarm_rate: FalseAlarmRate = None,
    unknown_limit: UnknownLimit = None,
    max_upload_bytes: Annotated[str | None, typer.Option(help="Largest upload, as in 32MiB. [default: 32MiB]")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture. [default: 40000000]")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Pictures in one pass. [default: 8]")] = None,
    max_batch_wait_ms: Annotated[
        float | None, typer.Option(help="Longest that a picture waits for others. [default: 5]")
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(help="Requests in hand; beyond it they get status 429. [default: 64]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="critical, error, warning, info or debug. [default: info]")
    ] = None,
) -> None:
    """Serve a checkpoint: POST /predict, GET /tasks, a page at /, metrics at /metrics, documentation at /docs.

    Every option can be set by environment too: MOLEFLOW_ and its name, as in MOLEFLOW_MAX_BATCH_SIZE; an option wins.
    """
    from model.threads import configure_threads
    from service.server import serve as run
    from service.settings import load_settings

    settings = load_settings(
        checkpoint=checkpoint, host=host, port=port, device=device,
        precision=precision.value if precision else None, plugin=plugin, false_alarm_rate=false_alarm_rate,
        unknown_limit=unknown_limit, max_upload_bytes=max_upload_bytes, max_pixels=max_pixels,
        max_batch_size=max_batch_size, max_batch_wait_ms=max_batch_wait_ms,
        queue_size=queue_size, log_level=log_level,
    )  # fmt: skip
    configure_threads()
    run(settings)
