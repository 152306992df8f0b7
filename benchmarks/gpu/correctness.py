"""Runs the tests that need a CUDA device, ``tests/cuda``, and records what they say.

With pytest-xdist several run at a time, except those that fill the GPU's memory, which come last.
"""

import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.shared.subprocesses import ROOT, environment
from moleflow.model.runtime.threads import available_processors

__all__ = ["measure", "outcomes"]

TESTS = ROOT / "tests/cuda"

OPTIONS = ("-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default")

ALONE = ("test_out_of_memory.py",)
"""They fill the GPU's memory."""

MOST_PROCESSES = 4
"""Each keeps a few GB of the GPU's memory."""

LONGEST_MESSAGE = 200
MOST_SLOW = 5


def measure(context: Context) -> None:
    """Run the tests; those that have not ended in time are interrupted."""
    result = context.result
    if not TESTS.is_dir():
        result["not_measured"] = "there is no folder tests/cuda"
        return
    processes = min(MOST_PROCESSES, available_processors() // 2) if find_spec("xdist") else 0
    beside = [f"--ignore={TESTS / name}" for name in ALONE]
    passes = {
        "beside": [str(TESTS), *beside, *(("-n", str(processes)) if processes > 1 else ())],
        "alone": [str(TESTS / name) for name in ALONE],
    }
    result["status"] = 0
    for name, words in passes.items():
        found = _run(context, name, words)
        result["status"] = result["status"] or found.pop("status")
        for key, value in found.items():
            result[key] = result.get(key, type(value)())
            result[key] = result[key] | value if isinstance(value, dict) else result[key] + value


def _run(context: Context, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One run of pytest: its exit status, and the outcomes if it wrote a report."""
    report = context.work / f"correctness-{name}.xml"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", *arguments, *OPTIONS, f"--junitxml={report}"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL)
    try:
        status = process.wait(max(context.left() - 10, 1))
    except subprocess.TimeoutExpired:
        context.stopped = True
        process.send_signal(signal.SIGINT)  # pytest then still writes its report
        try:
            status = process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if report.exists():
        return {"status": status} | outcomes(report)
    return {"status": status, "failures": {name: f"pytest wrote no report (status {status}); see the log"}}


def outcomes(report: Path) -> dict[str, Any]:
    """Numbers of tests by outcome, failing ones and skipped ones with their messages, and the slowest."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": {}, "skips": {}}
    seconds: dict[str, float] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        seconds[name] = float(case.get("time", 0))
        bad = [each for each in case if each.tag in ("failure", "error")]
        skips = [each for each in case if each.tag == "skipped"]
        if bad:
            found["failed"] += 1
            found["failures"][name] = _first_line(bad[0])
        elif skips:
            found["skipped"] += 1
            found["skips"][name] = _first_line(skips[0])
        else:
            found["passed"] += 1
    slow = sorted(seconds.items(), key=lambda each: -each[1])[:MOST_SLOW]
    return found | {"seconds": round(sum(seconds.values()), 1), "slowest": dict(slow)}


def _first_line(element: ElementTree.Element) -> str:
    text = " ".join((element.get("message") or element.text or "").split())
    return text[:LONGEST_MESSAGE]
