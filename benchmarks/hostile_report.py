"""The verdict on a hostile load: gates, and the account of what became of every request."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hostile_ledger import BAD, Disturbance, Ledger, settle

from moleflow.service.settings import Settings

__all__ = ["judge", "markdown", "memory_limit"]

MOST_STALL_SECONDS = 0.05

SLOWEST_PROBE_SECONDS = 1.0
"""What orchestrators wait for a probe unless told otherwise."""

DECODING_BYTES = 600 * 10**6
"""Memory that one image may take while it is decoded, and while its overlay is made."""

CONNECTION_BYTES = 300_000
"""What one connection may hold of what it sent."""

MOST_CONNECTIONS = 1000
"""As many as there are where ``max_connections`` is not set."""

SPARE_BYTES = 200 * 10**6
"""What Python's and the model's own memory may grow by over thousands of requests."""

SPARE_DESCRIPTORS = 8
"""More than at the start that may be open at the end."""

MOST_SHOWN = 40
"""Troubles that the table names."""


def judge(found: dict[str, Any], settings: Settings, inputs: int) -> dict[str, Any]:
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
    gates = [gate(f"requests {name}", sum(n for (_, outcome), n in ledger.counts.items() if outcome == name), 0)
             for name in BAD]  # fmt: skip
    gates += [
        gate("good images answered otherwise after the load", len(found["wrong_after"]), 0),
        gate("inputs not sent", inputs - ledger.inputs, 0),
        gate("longest stall of the event loop, ms", 1000 * longest, 1000 * MOST_STALL_SECONDS),
        gate("slowest probe, ms", slowest, 1000 * SLOWEST_PROBE_SECONDS),
        gate("probes that failed in peace", sum(row["failed"] for row in probes.values()), 0),
        gate("hangs that readiness did not tell", untold(ledger, disturbances), 0),
        gate("peak memory of all processes, MB", memory["most"] / 1e6, memory_limit(memory["rest"], settings) / 1e6),
        gate("descriptors more than at the start", descriptors["end"] - descriptors["rest"], SPARE_DESCRIPTORS),
        gate("seconds until it stopped", found["stop_seconds"], found["stop_limit"]),
    ]
    return {
        "date": time.strftime("%Y-%m-%d"), "minutes": found["seconds"] / 60, "inputs": ledger.inputs,
        "requests": sum(ledger.counts.values()) + sum(row["count"] for row in probes.values()), "gates": gates,
        "outcomes": table_of(ledger), "statuses": dict(sorted(ledger.statuses.items())), "probes": probes,
        "disturbances": dict(Counter(one.kind for one in disturbances)), "restarts": found["restarts"],
        "memory": memory, "descriptors": descriptors, "idle_clock_late_ms": 1000 * found["clock_late_seconds"],
        "stalls": {
            "over_limit": sum(one["seconds"] > MOST_STALL_SECONDS for one in stalls),
            "longest": sorted(stalls, key=lambda one: -one["seconds"])[:MOST_SHOWN],
            "busiest": sorted(stalls, key=lambda one: -one["own_seconds"])[:MOST_SHOWN],
        },
        "wrong_after": found["wrong_after"], "left": [asdict(trouble) for trouble in left],
    }  # fmt: skip


def memory_limit(rest: int, settings: Settings) -> int:
    """What all processes together may take: what they take at rest, and what the settings let requests have."""
    budgets = settings.upload_memory + settings.answer_memory
    connections = CONNECTION_BYTES * (settings.max_connections or MOST_CONNECTIONS)
    return rest + settings.cpu_workers * 2 * DECODING_BYTES + budgets + connections + SPARE_BYTES


def overlaps(start: float, end: float, disturbances: Sequence[Disturbance]) -> bool:
    """Whether one of the disturbances was at that time."""
    return any(start <= one.end and one.start <= end for one in disturbances)


def probe_figures(
    rows: Sequence[tuple[float, float, int]], disturbances: Sequence[Disturbance], stopped: Sequence[Disturbance]
) -> dict[str, Any]:
    """Latencies of one probe while the process was not stopped, and failures in peace."""
    restarts = [one for one in disturbances if one.kind in ("exit", "hang")]
    awake = [row for row in rows if not overlaps(row[0], row[0] + row[1], [*stopped, *restarts])]
    failed = [row for row in rows if row[2] != 200 and not overlaps(row[0], row[0] + row[1], disturbances)]
    seconds = sorted(row[1] for row in awake) or [0.0]
    return {
        "count": len(rows), "failed": len(failed), "median_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * seconds[int(0.99 * (len(seconds) - 1))], "slowest_ms": 1000 * seconds[-1],
    }  # fmt: skip


def untold(ledger: Ledger, disturbances: Sequence[Disturbance]) -> int:
    """How many hangs went by without ``/health/ready`` saying so."""
    unready = [(start, start + seconds) for start, seconds, status in ledger.probes.get("/health/ready", ())
               if status != 200]  # fmt: skip
    hangs = [one for one in disturbances if one.kind == "hang"]
    return sum(not any(overlaps(start, end, [hang]) for start, end in unready) for hang in hangs)


def table_of(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Outcomes by activity."""
    table: dict[str, dict[str, int]] = {}
    for (activity, outcome), count in sorted(ledger.counts.items()):
        table.setdefault(activity, {})[outcome] = count
    return table


def gate(name: str, value: float | None, limit: float) -> dict[str, Any]:
    """One gate; without a value it fails."""
    return {"name": name, "value": value, "limit": limit, "passed": value is not None and value <= limit}


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    passed = all(gate["passed"] for gate in result["gates"])
    lines = [
        f"**{'PASS' if passed else 'FAIL'}**: {result['requests']:,} requests in {result['minutes']:.1f} minutes, "
        f"{result['inputs']:,} hostile inputs, {sum(result['disturbances'].values())} disturbances, "
        f"{result['restarts']} restarts; {result['date']}, {result['machine']['processor']}",
        "", "| gate | value | at most | |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {one['name']} | {'never' if one['value'] is None else format(one['value'], ',.1f').removesuffix('.0')} "
        f"| {one['limit']:,.0f} | {'PASS' if one['passed'] else 'FAIL'} |"
        for one in result["gates"]
    ]
    lines += ["", f"An idle process's clock beside it came late by up to {result['idle_clock_late_ms']:.0f} ms.", ""]
    outcomes = list(dict.fromkeys(name for row in result["outcomes"].values() for name in row))
    lines += ["| activity | " + " | ".join(outcomes) + " |", "|---" * (len(outcomes) + 1) + "|"]
    for activity, row in result["outcomes"].items():
        lines.append(f"| {activity} | " + " | ".join(f"{row.get(name, 0):,}" for name in outcomes) + " |")
    lines += ["", "| probe | number | median ms | p99 ms | slowest ms | failed in peace |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['count']:,} | {row['median_ms']:.1f} | {row['p99_ms']:.1f} | {row['slowest_ms']:.0f} "
        f"| {row['failed']} |"
        for name, row in result["probes"].items()
    ]
    lines += ["", "Disturbances: " + ", ".join(f"{kind} {n}" for kind, n in result["disturbances"].items()) + "."]
    lines += ["Statuses: " + ", ".join(f"{status}: {n:,}" for status, n in result["statuses"].items()) + "."]
    if result["left"]:
        lines += ["", "Not explained:", ""]
        lines += [f"- {one['outcome']}: {one['activity']}, {one['sent']}: {one['detail']}" for one in
                  result["left"][:MOST_SHOWN]]  # fmt: skip
    return "\n".join(lines) + "\n"
