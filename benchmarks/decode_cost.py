"""What does it cost the service to decode an upload, at the worst?

    python benchmarks/decode_cost.py [--kind NAME …] [--megabytes N …] [--output FILE.json]

Each kind of ``hostile_images.py`` goes, at each size, through the way of an upload, in a process of its own that the
service's settings have set up: processor time and memory of the decoding, what became of it, and how the cost grows
with the size. The gates: no upload takes more than ``MOST_SECONDS`` of one core, none lets memory grow by more than
``MOST_BYTES``, none outlives ``PATIENCE_SECONDS``, and four times the bytes cost at most ``MOST_GROWTH`` times as much
where it is enough to tell. The exit status is 1 unless all pass.
"""

import argparse
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

from hostile_images import KINDS, MEGABYTE, good_images
from process_tree import reset_peaks, tree
from result_files import write_result

__all__ = ["Bench", "judge", "markdown"]

MOST_SECONDS = 2.1
"""Of one core, for any upload within the limits: two, as the kernel's timer counts them."""

MOST_BYTES = 600 * MEGABYTE
"""Of memory, for any upload within the limits."""

PATIENCE_SECONDS = 20.0
"""After which a decoding is ended and counts as endless."""

MOST_GROWTH = 6.0
"""Cost of four times the bytes; 4 is linear, 16 quadratic."""

LEAST_TELLING_SECONDS = 0.3
"""A cost below this tells nothing about growth: timers count in hundredths, and machines have other work."""

SIZES = (1, 8, 32)
"""In MB; the service takes 32 MiB unless told otherwise."""

SAMPLING_SECONDS = 0.01

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """A process that decodes what it is told to, and is watched from here; replaced when it does not come back."""

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
        """Decode one file: outcome, processor and wall seconds, and by how many bytes memory grew at most."""
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
        # A process that was replaced began where the least of the others stood.
        growth = sum(max(0, one.peak - (before[pid].resident if pid in before else least))
                     for pid, one in watched.items())  # fmt: skip
        # What the replacement of a process takes to start is not the image's.
        seconds = sum(watched[pid].seconds - one.seconds for pid, one in before.items())
        outcome = said or ("endless" if wall >= PATIENCE_SECONDS else "the process ended")
        return {"outcome": outcome, "seconds": seconds, "wall_seconds": wall, "bytes": growth}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), "--decode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            self._process.stdout.readline()
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[str], path: Path) -> str | None:
        """What the process says of a file; ``None`` when it does not come back."""
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
    """The process that is measured: decode the files whose names come in, and say what became of each."""
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
    """The way of an upload in the service, with its default settings; it gives width and height."""
    from moleflow.model.images.preprocessing import Preprocessing
    from moleflow.service.decoding.pool import Decoders
    from moleflow.service.settings import Settings

    settings = Settings(checkpoint=Path("any"))
    preprocessing = Preprocessing(image_size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    decoders = Decoders(1, seconds=settings.decode_timeout_seconds, max_pixels=settings.max_pixels)
    decoders.start()

    def run(data: bytes) -> str:
        decoded = decoders.decode(data, preprocessing)
        return f"{decoded.width}×{decoded.height}"

    return run


def measure(kinds: Sequence[str], sizes: Sequence[float]) -> list[dict[str, Any]]:
    """One row a kind and size."""
    rows, bench = [], Bench()
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
    """By kind, how the cost of the largest size compares to that of a quarter: 4 where it is linear."""
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["megabytes"])
        if len(own) < 2 or own[-1]["seconds"] < LEAST_TELLING_SECONDS:
            continue
        last, other = own[-1], own[-2]
        # Of two sizes that are not a factor of four apart: the factor per doubling, twice.
        doublings = max(
            0.1, (last["megabytes"] / other["megabytes"] - 1) and _log2(last["megabytes"] / other["megabytes"])
        )
        ratio = last["seconds"] / max(other["seconds"], LEAST_TELLING_SECONDS / 4)
        found[kind] = ratio ** (2 / doublings)
    return found


def _log2(value: float) -> float:
    import math

    return math.log2(value)


def judge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each gate with its limit, what breaks it, and whether it passed."""
    slow = [row for row in rows if row["seconds"] > MOST_SECONDS]
    large = [row for row in rows if row["bytes"] > MOST_BYTES]
    lost = [row for row in rows if row["outcome"] in ("endless", "the process ended")]
    steep = [{"kind": kind, "megabytes": growth} for kind, growth in growths(rows).items() if growth > MOST_GROWTH]
    return [
        {"name": name, "limit": limit, "broken_by": [f"{row['kind']} ({row['megabytes']:g})" for row in broken],
         "passed": not broken}
        for name, limit, broken in (
            ("processor seconds of one upload", f"≤ {MOST_SECONDS:g}", slow),
            ("growth of memory by one upload", f"≤ {MOST_BYTES / MEGABYTE:g} MB", large),
            ("decodings that did not come back", "0", lost),
            ("cost of four times the bytes", f"≤ {MOST_GROWTH:g}×", steep),
        )
    ]  # fmt: skip


def cell(row: dict[str, Any]) -> str:
    """One measurement in a table."""
    return f"{row['seconds']:.2f} s, {row['bytes'] / MEGABYTE:.0f} MB, {row['outcome']}"


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    sizes = list(dict.fromkeys(row["megabytes"] for row in result["rows"]))
    lines = ["| gate | limit | broken by | |", "|---|---|---|---|"]
    lines += [
        f"| {gate['name']} | {gate['limit']} | {', '.join(gate['broken_by']) or '–'} "
        f"| {'PASS' if gate['passed'] else 'FAIL'} |"
        for gate in result["gates"]
    ]
    lines += ["", "Processor seconds, growth of memory, and what became of it:", ""]
    lines += ["| kind | " + " | ".join(f"{size:g} MB" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        lines.append(f"| {kind} | " + " | ".join(cell(row) for row in result["rows"] if row["kind"] == kind) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 when a gate fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", help="those whose names begin so; repeat for more (default: all)")
    parser.add_argument("--megabytes", type=float, action="append", help=f"default: {SIZES}")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.decode:
        decode_for_ever()
        return 0
    kinds = [kind for kind in KINDS if not options.kind or kind.startswith(tuple(options.kind))]
    rows = measure(kinds, options.megabytes or SIZES)
    result = {"date": time.strftime("%Y-%m-%d"), "rows": rows, "growth": growths(rows), "gates": judge(rows)}
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)
    return 0 if all(gate["passed"] for gate in result["gates"]) else 1


if __name__ == "__main__":
    sys.exit(main())
