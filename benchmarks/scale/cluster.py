"""How much faster are products learned beside each other on Ray, and what does a killed node cost?

    python -m benchmarks cluster_training [--products 8] [--images 31] [--kill] [--output FILE.json]

Preset ``small``, synthetic images, one thread for each training, so two processors learn two products at a time. The
first product, which learns the base, is not timed. Three ways learn the others on the same machine, in turn: *sequence*
is one ``moleflow train``; *side by side* is two at once with half of the products each, which is what two processors
can do at best; *Ray* is ``moleflow train --ray local``. Each is timed as a whole and from its first line about a
product, without start-up. One gate: from the first line on, Ray reaches 0.9 of what two trainings side by side do.

With ``--kill`` two nodes of one processor each learn as well, and one of them is killed in the middle of a fit. Shown
are the seconds until its product goes on, and the epochs that were repeated.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import processor
from benchmarks.shared.subprocesses import environment, module_command
from benchmarks.speed.training_speed import synthetic_images
from moleflow.model.runtime.threads import available_processors
from moleflow.training.report.markdown import markdown_table
from tests.support.two_nodes import ONE_THREAD, SECOND, Command, TwoNodes

__all__ = ["main"]

LEAST_SHARE = 0.9
"""Of what two trainings side by side reach."""

SIDE = 256
"""Pixels of the images' sides."""

FIRST = "product0"


class Training:
    """A running ``moleflow train``, timed by its lines."""

    def __init__(self, data: Path, base: Path, products: Sequence[str], *more: object) -> None:
        self._checkpoint = base.with_name(f"{products[0]}-{len(more)}-{base.name}")
        shutil.copy(base, self._checkpoint)
        named = [word for name in products for word in ("--task", name)]
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            module_command("moleflow", "train", data, "--checkpoint", self._checkpoint, *named, *more),
            env=environment(ONE_THREAD),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.first_line = self.ended = 0.0

    def wait(self) -> None:
        """Read its lines to the end. ``BenchmarkError`` if it fails."""
        assert self._process.stderr is not None
        last = ""
        for line in self._process.stderr:
            last = line
            if not self.first_line and re.match(r"product\d+:", line):
                self.first_line = time.perf_counter()
        if self._process.wait():
            raise BenchmarkError(f"training failed: {last.strip()}")
        self.ended = time.perf_counter()


def timed(trainings: Sequence[Training]) -> dict[str, float]:
    """Seconds of trainings that run at once: as a whole, and from the first line about a product to the last end."""
    from threading import Thread

    readers = [Thread(target=each.wait) for each in trainings]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if not all(each.ended for each in trainings):
        raise BenchmarkError("a training failed; see above")
    ended = max(each.ended for each in trainings)
    return {
        "whole": ended - min(each.started for each in trainings),
        "learning": ended - min(each.first_line for each in trainings),
    }


def kill_a_node(data: Path, base: Path, products: Sequence[str], folder: Path) -> dict[str, Any]:
    """Kill a node in the middle of a fit; seconds until its product goes on, and the epochs that were repeated."""
    nodes = TwoNodes()
    try:
        checkpoint = folder / "killed.safetensors"
        shutil.copy(base, checkpoint)
        named = [word for name in products for word in ("--task", name)]
        command = Command(folder / "killed", "train", data, "--checkpoint", checkpoint, *named, "--ray", nodes.address)
        on_second = re.compile(rf"^(\w+): on {SECOND}$", re.M)

        def deep(printed: str) -> bool:
            found = on_second.findall(printed)
            return bool(found) and f"{found[-1]}: epoch 4/" in printed

        command.wait_for(deep)
        name = on_second.findall(command.printed)[-1]
        nodes.kill_second()
        killed = time.perf_counter()
        continues = re.compile(rf"^{name}(?:, fold .*)?: continues after epoch (\d+) of", re.M)
        command.wait_for(lambda printed: continues.search(printed) is not None)
        seconds = time.perf_counter() - killed
        if command.finish():
            raise BenchmarkError("the training with a killed node failed")
        lines = re.findall(rf"^{name}(?:, fold .*)?: epoch \d+/", command.printed, re.M)
        return {"seconds_until_it_went_on": seconds, "repeated_epochs": len(lines) - len(set(lines))}
    finally:
        nodes.stop()


def write_products(root: Path, count: int, images: int) -> list[str]:
    """The first product and ``count`` others; their names."""
    names = [FIRST, *(f"product{number}" for number in range(1, count + 1))]
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index, pixels in enumerate(synthetic_images(images, SIDE, seed=number)):
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return names


def markdown(found: dict[str, Any]) -> str:
    rows = [[way, f"{times['whole']:.0f} s", f"{times['learning']:.0f} s"] for way, times in found["times"].items()]
    text = markdown_table(["way", "whole command", "from the first line"], rows)
    text += f"\n\nRay: {found['speed_up']:.2f} times as fast as in sequence, {found['share']:.2f} of side by side.\n"
    killed = found.get("killed")
    if killed:
        text += (
            f"\nA killed node: its product went on {killed['seconds_until_it_went_on']:.1f} s later, and "
            f"{killed['repeated_epochs']} epochs were repeated.\n"
        )
    return text


def main(arguments: Sequence[str]) -> int:
    parser: argparse.ArgumentParser = make_parser("cluster_training", __doc__)
    parser.add_argument("--products", type=positive, default=8, help="beside the first one; an even number")
    parser.add_argument("--images", type=positive, default=31, help="good images of each")
    parser.add_argument("--kill", action="store_true", help="also kill a node")
    add_output(parser)
    options = parser.parse_args(arguments)
    if available_processors() < 2 or options.products % 2:
        raise BenchmarkError("two processors and an even number of products are needed")
    with tempfile.TemporaryDirectory(prefix="cluster.") as name:
        folder = Path(name)
        first, *others = write_products(folder / "data", options.products, options.images)
        base = folder / "base.safetensors"
        done = subprocess.run(
            module_command(
                "moleflow", "train", folder / "data", "--task", first, "--checkpoint", base, "--preset", "small"
            ),
            env=environment(ONE_THREAD),
        )
        if done.returncode:
            raise BenchmarkError("the first product was not learned")
        data, half = folder / "data", len(others) // 2
        times = {
            "sequence": timed([Training(data, base, others)]),
            "side by side": timed([Training(data, base, part) for part in (others[:half], others[half:])]),
            "Ray": timed([Training(data, base, others, "--ray", "local")]),
        }
        found: dict[str, Any] = {
            "processor": processor(),
            "load": os.getloadavg()[0],
            "products": options.products,
            "images": options.images,
            "times": times,
            "speed_up": times["sequence"]["learning"] / times["Ray"]["learning"],
            "share": times["side by side"]["learning"] / times["Ray"]["learning"],
        }
        if options.kill:
            found["killed"] = kill_a_node(data, base, others[:4], folder)
    gate = Gate(
        "Ray against two trainings side by side", f"{found['share']:.2f}", f"≥ {LEAST_SHARE}",
        found["share"] >= LEAST_SHARE,
    )  # fmt: skip
    return finish(options.output, found, markdown(found), [gate])
