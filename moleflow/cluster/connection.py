"""Connecting to Ray (https://docs.ray.io).

Only modules of this package import Ray, and a command imports them only when it is to use Ray."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moleflow.model.errors import ConfigurationError, one_line
from moleflow.model.runtime.threads import THREAD_POLICY, available_processors, thread_count

__all__ = ["LOCAL", "Share", "connected", "nodes_without", "require_ray"]

LOCAL = "local"
"""The address that starts Ray on this machine, for the time of the command."""

_CLIENT = "ray://"
"""Ray Client runs the driver inside the cluster, where it could not see the checkpoint."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker takes of its node: processors and GPUs, in fractions too."""

    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Threads per operation: ``MOLEFLOW_THREADS`` where it is set, else the whole processors of a worker."""
        return thread_count() if os.environ.get("MOLEFLOW_THREADS", "").strip() else max(int(self.cpus), 1)

    def device(self, wanted: str) -> str:
        """The device of a worker: ``auto`` is a GPU exactly if the worker has a share of one."""
        return wanted if wanted != "auto" else "cuda" if self.gpus else "cpu"

    def slots(self, resources: dict[str, float]) -> int:
        """How many workers fit beside each other into ``resources``."""
        fits = [resources.get("CPU", 0.0) / self.cpus] if self.cpus else []
        fits += [resources.get("GPU", 0.0) / self.gpus] if self.gpus else []
        return int(min(fits, default=0))


def require_ray() -> None:
    """``ConfigurationError`` if Ray is not installed; to be called before other modules of this package are imported.

    Ray reports usage to its makers unless the environment says otherwise; here it does not unless it says so.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("Ray is not installed; run pip install 'moleflow[ray]'.") from error


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the Ray cluster at ``address`` (``HOST:PORT``, or ``auto``: the one on this machine), or start one here.

    Raises:
        ConfigurationError: there is no cluster.
    """
    if address.startswith(_CLIENT):
        raise ConfigurationError(
            f"--ray {address!r} is an address of Ray Client, which the command cannot use; run it on a node of the "
            "cluster with `--ray auto`, or give HOST:PORT of its head node."
        )
    import ray

    # Workers import PyTorch before any code of ours could set the wait policy.
    policy = {name: os.environ[name] for name in THREAD_POLICY if name in os.environ}
    here = {"num_cpus": available_processors(), "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": policy},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **here,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"no Ray cluster can be reached at {address!r} ({one_line(error)}); start one with `ray start --head`, "
            f"give HOST:PORT of its head node, or use --ray {LOCAL}."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes_without(share: Share) -> bool:
    """Whether no node of the cluster has room for a single worker, however idle it is."""
    import ray

    return not any(share.slots(node["Resources"]) for node in ray.nodes() if node["Alive"])
