"""Inter-image parallelism: each thread takes one image through all operations.

With intra-operation parallelism, threads synchronise after every operation, and sleeping threads
(``moleflow.model.runtime.threads``) take longer to wake up than many operations take. The images of a batch are
independent, so each thread processes its own, in its own cache, and synchronises once.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["parallel_map"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def parallel_map(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """``[work(piece) for piece in pieces]`` on the CPU, in parallel on as many threads as PyTorch is set to.

    Each piece runs on one thread; a remainder smaller than the number of threads runs last, on several threads each.
    ``work`` runs in the caller's inference and autocast modes. Raises what ``work`` raises.
    """
    threads = torch.get_num_threads()
    rest = len(pieces) % threads
    whole = len(pieces) - rest
    return _run(work, pieces[:whole], 1, threads) + _run(work, pieces[whole:], threads // max(rest, 1), threads)


def _run(work: Callable[[Piece], Result], pieces: Sequence[Piece], each: int, threads: int) -> list[Result]:
    """Run pieces in parallel, on ``each`` of ``threads`` threads each."""
    if each == threads:
        return [work(piece) for piece in pieces]
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(piece: Piece) -> Result:
        # PyTorch's thread count and modes are thread-local.
        if torch.get_num_threads() != each:
            torch.set_num_threads(each)
        with torch.inference_mode(inference), torch.autocast("cpu", dtype, enabled=autocast):
            return work(piece)

    try:
        return list(_workers(threads).map(run, pieces))
    finally:
        torch.set_num_threads(threads)  # new threads start with the number set last


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "parallel-map")
