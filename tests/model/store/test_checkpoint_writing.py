"""A checkpoint is written whole or not at all: failures and kills leave the old one."""

import random
import time
from functools import partial
from pathlib import Path

import pytest
from forked import Processes

from moleflow.model.errors import (
    CheckpointError,
)
from moleflow.model.store.checkpoint import Checkpoint, write_checkpoint


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    in_the_way = tmp_path / "factory.safetensors"
    in_the_way.mkdir()
    with pytest.raises(CheckpointError, match="cannot be written .*make room, or choose another location"):
        write_checkpoint(in_the_way, checkpoint.header, {name: {} for name in checkpoint.header.digests()})
    assert list(tmp_path.iterdir()) == [in_the_way]


@pytest.mark.parametrize("how", ["section", "stored"])
def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes, how: str
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # A limit on the size of files fails a write in its middle, as a full disk does.
    finished = processes.run(
        "import resource, signal\nfrom moleflow.model.store.checkpoint import Checkpoint, write_checkpoint\n"
        f"old = Checkpoint.open({str(path)!r})\n"
        f"sections = {{name: old.{how}(name) for name in old.header.digests()}}\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_checkpoint(old.path, old.header, sections)\n"
    )
    assert finished.status == 1
    assert "CheckpointError: checkpoint" in finished.stderr
    Checkpoint.open(path).verify()
    assert list(tmp_path.iterdir()) == [path]


def test_kills_of_a_writer_at_random_instants_leave_the_old_or_the_new_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, processes: Processes
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(checkpoint.path.read_bytes())
    # The writer goes back and forth between two and three tasks.
    code = (
        "from moleflow.model.store.checkpoint import Checkpoint, write_checkpoint\n"
        f"old = Checkpoint.open({str(checkpoint.path)!r})\n"
        "sections = {name: old.stored(name) for name in old.header.digests()}\n"
        "import itertools, pathlib\n"
        "for count in itertools.cycle((2, 3)):\n"
        "    header = old.header.model_copy(update={'tasks': old.header.tasks[:count]})\n"
        f"    write_checkpoint(pathlib.Path({str(path)!r}), header, sections)\n"
    )
    rng = random.Random(1)
    seen = set()

    def is_rewritten(before: int) -> bool:
        return path.stat().st_mtime_ns != before

    for _ in range(8):
        before = path.stat().st_mtime_ns
        writer = processes.start(code)
        writer.wait_for(partial(is_rewritten, before))
        time.sleep(rng.uniform(0, 0.03))
        writer.kill()
        assert writer.finish().status == -9
        opened = Checkpoint.open(path)
        opened.verify()
        seen.add(len(opened.header.tasks))
    assert seen <= {2, 3}
    write_checkpoint(path, checkpoint.header, {name: checkpoint.stored(name) for name in checkpoint.header.digests()})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == checkpoint.path.read_bytes()
