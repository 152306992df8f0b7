"""Damage containers and checkpoints at random, for as long as is wanted, and check what the reader makes of each.

    python benchmarks/fuzz_checkpoint.py [--inputs 10000] [--seed 0]

Half of the inputs are small safetensors files with a damaged table, half a tiny checkpoint with a damaged header, table
or bytes. Of each: what is accepted the safetensors library accepts too and reads alike; what is refused is refused as a
checkpoint is, in one line; and nothing takes more memory than a small file may.
``tests/model/store/test_checkpoint_fuzz.py`` does the same for a few hundred. Prints how many were accepted and
refused. The first failure is reduced to a small example, printed, and ends it.
"""

import argparse
import collections
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from checkpoint_fuzz import check_checkpoint, check_container, containers, damaged
from tiny_model import tiny_checkpoint

MEMORY_BOUND = 2**30
"""Most that the process may grow by. An input has 0.1 MB; what hypothesis notes of 10,000 of them is most of it."""


def run(
    name: str, inputs: int, number: int, strategy: st.SearchStrategy[bytes], check: Callable[[bytes], bool]
) -> None:
    """Check so many inputs and print what came of them."""
    counts: collections.Counter[bool] = collections.Counter()

    @seed(number)
    @settings(
        max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(content=strategy)
    def each(content: bytes) -> None:
        counts[check(content)] += 1

    started = time.perf_counter()
    each()
    seconds = time.perf_counter() - started
    print(f"{name}: {counts[True]:,} accepted, {counts[False]:,} refused, in {seconds:.0f} s", flush=True)


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
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
        sys.exit(grown > MEMORY_BOUND)


if __name__ == "__main__":
    main()
