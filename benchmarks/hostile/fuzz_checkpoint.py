"""Damage containers and checkpoints at random, and check what the reader makes of each.

    python -m benchmarks fuzz_checkpoint [--inputs 10000] [--seed 0]

Half of the inputs are small safetensors files with a damaged table, half are a tiny checkpoint with a damaged header,
table or bytes. An accepted file must be accepted by the safetensors library too, with the same content; a refused one
must give a checkpoint error of one line; and no input may take more memory than a small file should.
``tests/model/store/test_checkpoint_fuzz.py`` does the same for a few hundred inputs. Prints how many were accepted and
refused. The first failure is reduced to a small example and ends the run.
"""

import collections
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.shared.command import make_parser
from tests.support.checkpoint_fuzz import check_checkpoint, check_container, containers, damaged
from tests.support.tiny_model import tiny_checkpoint

MEMORY_BOUND = 2**30
"""Limit for the growth of the process. An input has 0.1 MB; hypothesis's notes on 10,000 of them take the most."""


def run(
    name: str, inputs: int, number: int, strategy: st.SearchStrategy[bytes], check: Callable[[bytes], bool]
) -> None:
    """Check ``inputs`` inputs from the seed ``number``, and print how many were accepted and refused."""
    counts: collections.Counter[bool] = collections.Counter()

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(content=strategy)
    def each(content: bytes) -> None:
        counts[check(content)] += 1

    started = time.perf_counter()
    each()
    seconds = time.perf_counter() - started
    print(f"{name}: {counts[True]:,} accepted, {counts[False]:,} refused, in {seconds:.0f} s", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("fuzz_checkpoint", __doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "input"
        whole = tiny_checkpoint(Path(name) / "factory.safetensors").path.read_bytes()
        assert check_checkpoint(whole, path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        half = options.inputs // 2
        run("containers", half, options.seed, containers(), lambda content: check_container(content, path))
        run("checkpoints", half, options.seed, damaged(whole), lambda content: check_checkpoint(content, path))
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        print(f"peak memory grew by {grown / 2**20:.0f} MiB; the bound is {MEMORY_BOUND / 2**20:.0f} MiB")
        return int(grown > MEMORY_BOUND)
