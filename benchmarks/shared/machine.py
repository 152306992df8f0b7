"""What a measurement ran on, as text for the head of its table; without host names and paths."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.shared.subprocesses import ROOT
from moleflow.model.runtime.threads import available_processors

__all__ = ["OtherWork", "code_digest", "commit", "describe", "processor", "versions"]

CODE = ("model", "training", "service", "moleflow", "benchmarks")
"""Folders with the code that is measured or measures."""

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "fastapi", "uvicorn")
"""Packages whose release changes a figure."""

_GPUS = "import torch; print(*(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())), sep=', ')"


def processor() -> str:
    """The processor's name from Linux, and the number of processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} processors" if names else platform.machine()


def versions() -> dict[str, str]:
    """Releases of ``PACKAGES``."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def describe() -> dict[str, str]:
    """Processor, memory, GPUs, system and versions."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{processor()}, of which {available_processors()} may be used",
        "memory": f"{pages / 2**30:.1f} GiB",
        "GPU": _gpus() or "none that PyTorch can use",
        "system": f"{_distribution()}, {platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


class OtherWork:
    """Fraction of the processors that other programs take from now on: all work minus our ended children's (Linux)."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float | None:
        """From 0 on a machine that nobody else used to 1; ``None`` where it is unknown."""
        busy = _busy_seconds()
        if self._busy is None or busy is None:
            return None
        others = busy - self._busy - (_own_seconds() - self._own)
        return min(max(others / ((time.monotonic() - self._started) * (os.cpu_count() or 1)), 0.0), 1.0)


def code_digest() -> str:
    """Digest of all programs in ``CODE``: tells which state of the code a figure belongs to, with or without git."""
    digest = hashlib.sha256()
    for path in sorted(
        path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".lua")
    ):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """The commit's short name, with a ``+`` if programs were changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *(f"{folder}/*.py" for folder in CODE)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+" if changed else "")


def _busy_seconds() -> float | None:
    """Busy seconds of all processors together since the system started, without waiting for disks."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft, steal = map(int, fields[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _gpus() -> str:
    """Asked in another process: here PyTorch would stay in memory while others are measured."""
    done = subprocess.run([sys.executable, "-c", _GPUS], capture_output=True, text=True)
    return done.stdout.strip()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
