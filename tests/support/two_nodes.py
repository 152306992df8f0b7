"""A Ray cluster of two nodes on this machine, whose second node can be killed and replaced."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["HEAD", "ONE_THREAD", "PATIENCE", "RAY", "SECOND", "Command", "TwoNodes"]

ROOT = Path(__file__).resolve().parents[2]

ONE_THREAD = {"MOLEFLOW_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
"""For every command: one thread, for the same bits everywhere, and no network."""

PATIENCE = 240
"""Seconds after which something counts as hung; generous, since the machine may be busy."""

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
"""Loopback addresses; Ray replaces 127.0.0.1 by the machine's own."""

OBJECTS = 100 * 2**20
"""Bytes of each node's object store."""

RAY = {
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # every line counts
    # A busy machine must not lose nodes because their agents start slowly.
    "RAY_agent_register_timeout_ms": "200000",
    "RAY_health_check_initial_delay_ms": "60000",
    "RAY_health_check_timeout_ms": "60000",
    # The one proxy must not spare the other node.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


class TwoNodes:
    """The cluster; each node has one processor for workers, and room for actors that need none."""

    def __init__(self) -> None:
        os.environ.update(RAY)
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=False, connect=False)
        self._add(HEAD, include_dashboard=False)
        self.second = self._add(SECOND)
        self.address = self._cluster.address

    def _add(self, address: str, **options: Any) -> Any:
        options |= {"num_cpus": 1, "num_gpus": 0, "object_store_memory": OBJECTS, "resources": {address: 1}}
        return self._cluster.add_node(node_ip_address=address, **options)

    def kill_second(self) -> None:
        """Kill all processes of the second node at once."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    def replace_second(self) -> None:
        """Add a second node again."""
        self.second = self._add(SECOND)

    def stop(self) -> None:
        self._cluster.shutdown()


class Command:
    """A running ``moleflow`` command, or another one, and what it has printed so far."""

    def __init__(self, output: Path, *arguments: object, program: tuple[str, ...] = ("-m", "moleflow")) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | ONE_THREAD | RAY,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def wait_for(self, condition: Callable[[str], bool]) -> None:
        """Wait until a condition on what was printed is true, while the command runs."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.printed):
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.05)

    def finish(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
