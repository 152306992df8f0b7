"""Freed memory stays in the process, in one arena for all threads."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Processes

ROOT = Path(__file__).parents[3]


def test_freed_memory_is_reused_without_page_faults(processes: Processes) -> None:
    code = (
        "import resource, torch\n"
        "from moleflow.model.runtime.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(3): torch.ones(12_000_000) + 1\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "before = min(faults() for _ in range(5))\n"
        "kept = keep_freed_memory()\n"
        # The heap takes a few rounds to settle: small blocks may first fill holes of large ones.
        "after = min(faults() for _ in range(20))\n"
        "print(before, kept, after)\n"
    )
    done = processes.run(code)
    before, kept, after = done.stdout.split()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(before) > 10_000
    assert int(after) < 100


HEAPS = """
import ctypes, sys, tempfile, threading
from moleflow.model.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
meeting = threading.Barrier(4)
def work():
    meeting.wait()
    blocks = [bytearray(size) for size in range(1000, 100_000, 1000)]
    meeting.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    opened = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, opened)
    libc.fclose(opened)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_all_threads_share_one_arena_unlike_by_default() -> None:
    heaps = [
        int(subprocess.run([sys.executable, "-c", HEAPS, how], cwd=ROOT, capture_output=True, check=True).stdout)
        for how in ("kept", "default")
    ]
    assert heaps[0] == 1
    assert heaps[1] > 1
