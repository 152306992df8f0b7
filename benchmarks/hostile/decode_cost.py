"""What does it cost the service to decode an upload in the worst case?

    python -m benchmarks decode_cost [--kind NAME …] [--megabytes N …] [--output FILE.json]

Each kind of hostile image (``images.py``), at each size, is decoded as an upload with the service's default settings,
in a process of its own. Measured are processor time, memory, the outcome, and how the cost grows with the size. The
gates: no upload takes more than 2.1 s of one core or lets memory grow by more than 600 MB, every decoding ends within
20 s, and four times the bytes cost at most 6 times as much, where the cost is large enough to tell.
"""

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.hostile.images import KINDS, MEGABYTE, good_images
from benchmarks.shared.command import Gate, add_output, finish, make_parser
from benchmarks.shared.process_tree import reset_peaks, tree
from benchmarks.shared.subprocesses import environment, module_command
from moleflow.training.report.markdown import markdown_table

__all__ = ["DecodingProcess", "judge", "markdown"]

MOST_SECONDS = 2.1
"""Limit for the processor time of one upload: two seconds of one core, as the kernel's timer counts them."""

MOST_BYTES = 600 * MEGABYTE
"""Limit for the growth of memory by one upload."""

PATIENCE_SECONDS = 20.0
"""After this time a decoding is killed and counts as endless."""

MOST_GROWTH = 6.0
"""Limit for the cost of four times the bytes, as a multiple; 4 is linear, 16 quadratic."""

LEAST_TELLING_SECONDS = 0.3
"""A smaller cost says nothing about growth: timers count hundredths, and machines have other work."""

SIZES = (1, 8, 32)
"""In MB; the service takes 32 MiB by default."""

SAMPLING_SECONDS = 0.01

SIDE = 224
"""The model's image size in pixels."""


class DecodingProcess:
    """A process that decodes files on request and is watched from here; replaced when it does not answer."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def measure(self, path: Path) -> dict[str, Any]:
        """Decode one file: outcome, processor and wall seconds, and the peak growth of memory in bytes."""
        process = self._started()
        reset_peaks(process.pid)
        before = tree(process.pid)
        least = min(one.resident for one in before.values())
        watched = dict(before)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(SAMPLING_SECONDS):
                watched.update(tree(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        started = time.monotonic()
        said = self._ask(process, path)
        wall = time.monotonic() - started
        watched.update(tree(process.pid))
        done.set()
        watching.join()
        if said is None:
            self.close()
        # A replaced process started from about the smallest of the others.
        growth = sum(
            max(0, one.peak - (before[pid].resident if pid in before else least)) for pid, one in watched.items()
        )
        # The start of a replacement is not the image's cost.
        seconds = sum(watched[pid].seconds - one.seconds for pid, one in before.items())
        outcome = said or ("endless" if wall >= PATIENCE_SECONDS else "the process ended")
        return {"outcome": outcome, "seconds": seconds, "wall_seconds": wall, "bytes": growth}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                module_command("benchmarks.hostile.decode_cost"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,
            )
            assert self._process.stdout is not None
            self._process.stdout.readline()
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[str], path: Path) -> str | None:
        """The process's answer about a file; ``None`` when there is none."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(PATIENCE_SECONDS, lambda: os.killpg(process.pid, 9))
        timer.start()
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return process.stdout.readline().strip() or None
        except OSError:
            return None
        finally:
            timer.cancel()


def decode_for_ever() -> None:
    """The measured process: decode the files named on stdin, and print the outcome of each."""
    decode = upload_decoder()
    for data in good_images().values():
        with suppress(Exception):
            decode(data)
    print("ready", flush=True)
    for line in sys.stdin:
        data = Path(line.strip()).read_bytes()
        try:
            outcome = decode(data)
        except Exception as error:
            outcome = type(error).__name__
        del data
        print(outcome, flush=True)


def upload_decoder() -> Callable[[bytes], str]:
    """The service's decoding of an upload with default settings; returns width and height as text."""
    from moleflow.service.decoding.pool import DecoderPool
    from moleflow.service.settings import Settings

    settings = Settings(checkpoint=Path("any"))
    decoders = DecoderPool(1, seconds=settings.decode_timeout_seconds, max_pixels=settings.max_pixels)
    decoders.start()

    def run(data: bytes) -> str:
        decoded = decoders.decode(data, SIDE)
        return f"{decoded.width}×{decoded.height}"

    return run


def measure(kinds: Sequence[str], sizes: Sequence[float]) -> list[dict[str, Any]]:
    """One row a kind and size."""
    rows, bench = list[dict[str, Any]](), DecodingProcess()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        try:
            for kind in kinds:
                for size in sizes:
                    length = path.write_bytes(KINDS[kind](int(size * MEGABYTE)))
                    row = {"kind": kind, "megabytes": size, "length": length} | bench.measure(path)
                    print(cell(row), kind, size, file=sys.stderr)
                    rows.append(row)
        finally:
            bench.close()
    return rows


def growths(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Cost of the largest size as a multiple of a quarter's, by kind: 4 where it is linear."""
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["megabytes"])
        if len(own) < 2 or own[-1]["seconds"] < LEAST_TELLING_SECONDS:
            continue
        last, other = own[-1], own[-2]
        # Two sizes may be another factor than four apart: take the factor per doubling, twice.
        doublings = max(0.1, math.log2(last["megabytes"] / other["megabytes"]))
        ratio = last["seconds"] / max(other["seconds"], LEAST_TELLING_SECONDS / 4)
        found[kind] = ratio ** (2 / doublings)
    return found


def judge(rows: Sequence[dict[str, Any]]) -> list[Gate]:
    """The gates; the value of each is what breaks it."""
    growth = growths(rows)
    broken = {
        ("processor seconds of one upload", f"≤ {MOST_SECONDS:g}"): [
            name_of(row) for row in rows if row["seconds"] > MOST_SECONDS
        ],
        ("growth of memory by one upload", f"≤ {MOST_BYTES / MEGABYTE:g} MB"): [
            name_of(row) for row in rows if row["bytes"] > MOST_BYTES
        ],
        ("decodings that did not end", "0"): [
            name_of(row) for row in rows if row["outcome"] in ("endless", "the process ended")
        ],
        ("cost of four times the bytes", f"≤ {MOST_GROWTH:g}×"): [
            f"{kind} ({value:.1f}×)" for kind, value in growth.items() if value > MOST_GROWTH
        ],
    }
    return [Gate(name, ", ".join(by) or "–", limit, not by) for (name, limit), by in broken.items()]


def name_of(row: dict[str, Any]) -> str:
    """Kind and size of one measurement."""
    return f"{row['kind']} ({row['megabytes']:g} MB)"


def cell(row: dict[str, Any]) -> str:
    """One measurement in a table."""
    return f"{row['seconds']:.2f} s, {row['bytes'] / MEGABYTE:.0f} MB, {row['outcome']}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of all kinds and sizes."""
    sizes = list(dict.fromkeys(row["megabytes"] for row in rows))
    kinds = dict.fromkeys(row["kind"] for row in rows)
    cells = [[kind, *(cell(row) for row in rows if row["kind"] == kind)] for kind in kinds]
    table = markdown_table(["kind", *(f"{size:g} MB" for size in sizes)], cells)
    return f"Processor seconds, growth of memory, and outcome:\n\n{table}"


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("decode_cost", __doc__)
    parser.add_argument("--kind", action="append", help="kinds whose names start like this; repeatable (default: all)")
    parser.add_argument("--megabytes", type=float, action="append", help=f"default: {SIZES}")
    add_output(parser)
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not options.kind or kind.startswith(tuple(options.kind))]
    rows = measure(kinds, options.megabytes or SIZES)
    result = {"date": time.strftime("%Y-%m-%d"), "rows": rows, "growth": growths(rows)}
    return finish(options.output, result, markdown(rows), judge(rows))


if __name__ == "__main__":
    decode_for_ever()
