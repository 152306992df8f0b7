"""Work in a pool of threads, timed, for the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from time import perf_counter
from typing import TypeVar

from moleflow.model.errors import describe

__all__ = ["in_thread"]

Result = TypeVar("Result")


async def in_thread(pool: Executor, work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Run ``work`` in a pool. Returns its result, the seconds it waited for a thread, and the seconds it took."""
    submitted = perf_counter()

    def timed() -> tuple[Result, float, float]:
        started = perf_counter()
        try:
            result = work()
        except Exception:
            raise
        except BaseException as error:
            # Re-raised in the event loop, SystemExit and the like would end the service instead of the request.
            raise RuntimeError(f"a thread raised {describe(error)}") from error
        return result, started - submitted, perf_counter() - started

    return await asyncio.get_running_loop().run_in_executor(pool, timed)
