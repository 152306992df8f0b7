"""The verdict on a hostile load: the gates, and the outcome of every request."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.hostile.ledger import BAD, Disturbance, Ledger, settle
from benchmarks.shared.command import Gate
from moleflow.service.settings import Settings
from moleflow.training.report.markdown import markdown_table

__all__ = ["judge", "markdown", "memory_limit"]

MOST_STALL_SECONDS = 0.05

SLOWEST_PROBE_SECONDS = 1.0
"""Orchestrators' default timeout of a probe."""

DECODING_BYTES = 600 * 10**6
"""Memory for decoding one image, and as much for its overlay."""

CONNECTION_BYTES = 300_000
"""Memory for what one connection sent."""

MOST_CONNECTIONS = 1000
"""Number of connections where ``max_connections`` is not set."""

SPARE_BYTES = 200 * 10**6
"""Allowed growth of Python's and the model's own memory over thousands of requests."""

SPARE_DESCRIPTORS = 8
"""Allowed growth of the number of open descriptors."""

MOST_SHOWN = 40
"""Number of troubles that the report lists."""


def judge(found: dict[str, Any], settings: Settings, inputs: int) -> tuple[dict[str, Any], list[Gate]]:
    """All figures and gates of a load."""
    ledger: Ledger = found["ledger"]
    disturbances: Sequence[Disturbance] = found["disturbances"]
    left = settle(ledger, disturbances)
    stopped = [one for one in disturbances if one.kind == "service stopped"]
    stalls = [one for one in found["stalls"] if not overlaps(one["start"], one["start"] + one["seconds"], stopped)]
    longest = max((one["seconds"] for one in stalls), default=0.0)
    probes = {name: probe_figures(rows, disturbances, stopped) for name, rows in ledger.probes.items()}
    slowest = max((row["slowest_ms"] for row in probes.values()), default=0.0)
    memory, descriptors = found["memory"], found["descriptors"]
    gates = [
        gate(f"requests {name}", sum(n for (_, outcome), n in ledger.counts.items() if outcome == name), 0)
        for name in BAD
    ]
    gates += [
        gate("good images with another answer after the load", len(found["wrong_after"]), 0),
        gate("inputs not sent", inputs - ledger.inputs, 0),
        gate("longest stall of the event loop, ms", 1000 * longest, 1000 * MOST_STALL_SECONDS),
        gate("slowest probe, ms", slowest, 1000 * SLOWEST_PROBE_SECONDS),
        gate("probes that failed without a disturbance", sum(row["failed"] for row in probes.values()), 0),
        gate("hangs that readiness did not report", unreported_hangs(ledger, disturbances), 0),
        gate("peak memory of all processes, MB", memory["most"] / 1e6, memory_limit(memory["rest"], settings) / 1e6),
        gate("growth of open descriptors", descriptors["end"] - descriptors["rest"], SPARE_DESCRIPTORS),
        gate("seconds to shut down", found["stop_seconds"], found["stop_limit"]),
    ]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "minutes": found["seconds"] / 60,
        "inputs": ledger.inputs,
        "requests": sum(ledger.counts.values()) + sum(row["count"] for row in probes.values()),
        "outcomes": table_of(ledger),
        "statuses": dict(sorted(ledger.statuses.items())),
        "probes": probes,
        "disturbances": dict(Counter(one.kind for one in disturbances)),
        "restarts": found["restarts"],
        "memory": memory,
        "descriptors": descriptors,
        "idle_clock_late_ms": 1000 * found["clock_late_seconds"],
        "stalls": {
            "over_limit": sum(one["seconds"] > MOST_STALL_SECONDS for one in stalls),
            "longest": sorted(stalls, key=lambda one: -one["seconds"])[:MOST_SHOWN],
            "busiest": sorted(stalls, key=lambda one: -one["own_seconds"])[:MOST_SHOWN],
        },
        "wrong_after": found["wrong_after"],
        "left": [asdict(trouble) for trouble in left],
    }
    return result, gates


def memory_limit(rest: int, settings: Settings) -> int:
    """Memory allowed for all processes together: that at rest, and what the settings give to requests."""
    budgets = settings.upload_memory + settings.answer_memory
    connections = CONNECTION_BYTES * (settings.max_connections or MOST_CONNECTIONS)
    return rest + settings.cpu_workers * 2 * DECODING_BYTES + budgets + connections + SPARE_BYTES


def overlaps(start: float, end: float, disturbances: Sequence[Disturbance]) -> bool:
    """Whether a disturbance overlaps that time."""
    return any(start <= one.end and one.start <= end for one in disturbances)


def probe_figures(
    rows: Sequence[tuple[float, float, int]], disturbances: Sequence[Disturbance], stopped: Sequence[Disturbance]
) -> dict[str, Any]:
    """Latencies of one probe while the process was not stopped, and failures without a disturbance."""
    restarts = [one for one in disturbances if one.kind in ("exit", "hang")]
    awake = [row for row in rows if not overlaps(row[0], row[0] + row[1], [*stopped, *restarts])]
    failed = [row for row in rows if row[2] != 200 and not overlaps(row[0], row[0] + row[1], disturbances)]
    seconds = sorted(row[1] for row in awake) or [0.0]
    return {
        "count": len(rows),
        "failed": len(failed),
        "median_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * seconds[int(0.99 * (len(seconds) - 1))],
        "slowest_ms": 1000 * seconds[-1],
    }


def unreported_hangs(ledger: Ledger, disturbances: Sequence[Disturbance]) -> int:
    """Number of hangs that ``/health/ready`` did not report."""
    unready = [
        (start, start + seconds) for start, seconds, status in ledger.probes.get("/health/ready", ()) if status != 200
    ]
    hangs = [one for one in disturbances if one.kind == "hang"]
    return sum(not any(overlaps(start, end, [hang]) for start, end in unready) for hang in hangs)


def table_of(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Outcomes by activity."""
    table: dict[str, dict[str, int]] = {}
    for (activity, outcome), count in sorted(ledger.counts.items()):
        table.setdefault(activity, {})[outcome] = count
    return table


def gate(name: str, value: float | None, limit: float) -> Gate:
    """A gate on an upper limit; without a value it fails."""
    text = "never" if value is None else f"{value:,.1f}".removesuffix(".0")
    return Gate(name, text, f"≤ {limit:,.0f}", value is not None and value <= limit)


def markdown(result: dict[str, Any]) -> str:
    """Outcomes by activity, probes, disturbances, and what is unexplained."""
    outcomes = list(dict.fromkeys(name for row in result["outcomes"].values() for name in row))
    activities = [
        [activity, *(f"{row.get(name, 0):,}" for name in outcomes)] for activity, row in result["outcomes"].items()
    ]
    probes = [
        [
            name,
            f"{row['count']:,}",
            f"{row['median_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['slowest_ms']:.0f}",
            row["failed"],
        ]
        for name, row in result["probes"].items()
    ]
    lines = [
        f"{result['requests']:,} requests in {result['minutes']:.1f} minutes, {result['inputs']:,} hostile inputs, "
        f"{sum(result['disturbances'].values())} disturbances, {result['restarts']} restarts; {result['date']}, "
        f"{result['machine']['processor']}. An idle process's clock was late by up to "
        f"{result['idle_clock_late_ms']:.0f} ms.",
        "",
        markdown_table(["activity", *outcomes], activities, right_from=1),
        "",
        markdown_table(
            ["probe", "number", "median ms", "p99 ms", "slowest ms", "failed without a disturbance"],
            probes,
            right_from=1,
        ),
        "",
        "Disturbances: " + ", ".join(f"{kind} {n}" for kind, n in result["disturbances"].items()) + ".",
        "Statuses: " + ", ".join(f"{status}: {n:,}" for status, n in result["statuses"].items()) + ".",
    ]
    if result["left"]:
        lines += ["", "Unexplained:", ""]
        shown = result["left"][:MOST_SHOWN]
        lines += [f"- {one['outcome']}: {one['activity']}, {one['sent']}: {one['detail']}" for one in shown]
    return "\n".join(lines)
