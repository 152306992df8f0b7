"""Pieces of work side by side, each on a thread of its own, instead of all threads on one operation after another.

Threads that share every operation wait for each other at the end of each, and one that sleeps meanwhile, as ours do
(``moleflow.model.runtime.threads``), takes longer to wake than many an operation takes. The images of a batch need
nothing of each other: each thread takes one of its own through all operations, in its own processor's cache, and waits
once.
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
    """``work`` of every piece, computed on the CPU, in the order of the pieces; they share the caller's threads.

    As many pieces as there are threads run at once, each on one; those left over run last, each on as many threads as
    there are for it. ``work`` runs in the caller's modes, inference and autocast. Raises what ``work`` raises.
    """
    threads = torch.get_num_threads()
    rest = len(pieces) % threads
    whole = len(pieces) - rest
    return _run(work, pieces[:whole], 1, threads) + _run(work, pieces[whole:], threads // max(rest, 1), threads)


def _run(work: Callable[[Piece], Result], pieces: Sequence[Piece], each: int, threads: int) -> list[Result]:
    """Pieces that have ``each`` of ``threads`` for one."""
    if each == threads:
        return [work(piece) for piece in pieces]
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(piece: Piece) -> Result:
        # PyTorch knows its threads and its modes for each of Python's threads.
        if torch.get_num_threads() != each:
            torch.set_num_threads(each)
        with torch.inference_mode(inference), torch.autocast("cpu", dtype, enabled=autocast):
            return work(piece)

    try:
        return list(_workers(threads).map(run, pieces))
    finally:
        torch.set_num_threads(threads)  # for threads that are yet to come, which begin with the last number set


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "parallel-map")
