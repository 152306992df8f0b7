"""A real service on the GPU under load, and how near it comes to what all processors can decode.

The service runs with its own settings, which MOLEFLOW_* variables may change, and then, for the highest concurrency
only, with as many decoders as there are processors and larger batches, and with half as many processes too.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.context import Context
from benchmarks.gpu.decode_ceiling import decode_rate
from benchmarks.gpu.models import checkpoint, chosen_preset
from benchmarks.gpu.pictures import write_pictures
from benchmarks.gpu.processor_use import ProcessorUse
from benchmarks.shared.running_service import RunningService
from benchmarks.speed.service_load import STAGES
from benchmarks.speed.wrk import REPLACEMENT, drive, find_wrk, generator
from moleflow.model.runtime.threads import available_processors

__all__ = ["measure"]

MAPS = {"none": "/predict?map=none", "default": "/predict"}
WIDE = {"max-batch-size": 64, "queue-size": 512}


def measure(context: Context) -> None:
    """The ceilings, then each setting of the service."""
    result, reduced = context.result, context.reduced
    seconds = 1 if reduced else 4
    concurrencies: Sequence[int] = (1, 2) if reduced else (1, 16, 64)
    pictures = write_pictures(context.work / "pictures", 4, 256 if reduced else 1024)
    processors, side = available_processors(), chosen_preset(context, "main").model.backbone.image_size
    program = _generator(context.options.wrk)
    result |= {"generator": generator(program), "processors": processors, "seconds": seconds}
    result["file_bytes"] = {
        kind: round(np.mean([path.stat().st_size for path in paths])) for kind, paths in pictures.items()
    }
    rates = result["decode_ceiling"] = {}
    for kind, paths in pictures.items():
        context.attempt(rates, kind, partial(decode_rate, paths, side, processors, 1 if reduced else 3))
    path = checkpoint(context, "main")
    wide: list[object] = ["--cpu-workers", processors]
    wide += [word for name, value in WIDE.items() for word in (f"--{name}", value)]
    settings: dict[str, tuple[list[object], Sequence[int], Sequence[str]]] = {
        "default": ([], concurrencies, tuple(MAPS)),
        "wide": (wide, concurrencies[-1:], ("none",)),
    }
    several = ["--processes", max(2, processors // 2)]
    settings["several"] = ([*wide, *several], concurrencies[-1:], ("none",))
    wanted = context.options.settings.split(",") if context.options.settings else list(settings)
    for name, (arguments, levels, maps) in ((each, settings[each]) for each in wanted):
        rows = result[name] = {}
        try:
            with RunningService(path, *arguments) as service:
                for kind, files in pictures.items():
                    context.attempt(
                        rows, "warm-up", partial(_load, service, program, MAPS["none"], files, levels[-1], 2)
                    )
                    for concurrency in levels:
                        for form in maps:
                            load = partial(_load, service, program, MAPS[form], files, concurrency, seconds)
                            context.attempt(rows, f"{kind}, {concurrency}, {form}", load)
                context.warnings.extend(_warnings(service))
        except Exception as error:  # the other setting may still start
            rows["error"] = f"{type(error).__name__}: {error}"[-400:]
    _add_shares(result)


def _load(
    service: RunningService, program: Sequence[str], path: str, files: Sequence[Path], concurrency: int, seconds: int
) -> dict[str, Any]:
    """Images per second, latencies and stages in milliseconds, and the processors that were busy."""
    use = ProcessorUse(service.pid)
    with _libraries_beside(program[0]):
        load = drive(program, service.url, path, files, concurrency, seconds)
    processors = use.found()
    found: dict[str, Any] = {"images_per_second": load.per_second(), "responses": len(load)}
    for name in ("latency", *STAGES):
        found[f"{name}_ms"] = {f"p{q}": round(float(np.nanpercentile(load[name], q)), 2) for q in (50, 99)}
    return found | {"busy_processors": processors}


def _warnings(service: RunningService) -> list[str]:
    """The first lines of the service's log that are no ordinary ones."""
    lines = service.output().splitlines()
    return [line[:300] for line in lines if any(word in line.lower() for word in ("warn", "error", "failed"))][:5]


def _add_shares(result: dict[str, Any]) -> None:
    """What the service reaches of the decoders' ceiling."""
    for name in ("default", "wide", "several"):
        for key, row in result.get(name, {}).items():
            ceiling = result["decode_ceiling"].get(key.partition(",")[0])
            if isinstance(row, dict) and "images_per_second" in row and isinstance(ceiling, float):
                row["of_ceiling"] = row["images_per_second"] / ceiling


def _generator(given: Path | None) -> list[str]:
    """wrk if it runs on this machine, else its replacement."""
    if given and given.is_file() and not os.access(given, os.X_OK):
        with contextlib.suppress(OSError):
            given.chmod(0o755)  # a copy may have lost it
    program = find_wrk(str(given) if given and os.access(given, os.X_OK) else None)
    if len(program) > 1:
        return program
    with _libraries_beside(program[0]), contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program[0], "-v"], capture_output=True, text=True, timeout=10)
        if "Copyright" in said.stdout + said.stderr:
            return program
        print(f"{program[0]} does not run: {(said.stderr or said.stdout).strip()}", flush=True)
    return list(REPLACEMENT)


@contextlib.contextmanager
def _libraries_beside(program: str) -> Iterator[None]:
    """Let programs that are started here find shared libraries in the folder of ``program``."""
    folder, before = Path(program).parent, os.environ.get("LD_LIBRARY_PATH")
    if not any(folder.glob("libluajit*")):
        yield
        return
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before
