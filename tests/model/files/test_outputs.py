"""Outputs are checked before any work: what cannot be written is reported at once, and nothing is changed."""

import os
import subprocess
from pathlib import Path

import pytest

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.outputs import check_output, check_output_folder, write_text


def test_a_check_changes_no_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    before = path.stat()
    check_output("the report", path)
    check_output("the report", tmp_path / "new" / "other")
    assert path.read_text() == "precious"
    assert os.path.samestat(path.stat(), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("folder", "it is a folder"),
        ("fifo", "it is a FIFO"),
        ("file/below", "a part of it is a file"),
        ("loop", "form a cycle"),
        ("x" * 300, "choose a shorter name"),
        ("link to device", "it is a device"),
    ],
)
def test_an_unwritable_output_is_refused_with_the_reason(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link to device").symlink_to("/dev/full")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match=f"the report '.*' cannot be written .*{hint}"):
        check_output("the report", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_output_that_is_an_input_under_any_name_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "factory.safetensors"
    checkpoint.write_text("precious")
    (tmp_path / "link").symlink_to(checkpoint)
    (tmp_path / "hard").hardlink_to(checkpoint)
    for name in ("factory.safetensors", "link", "hard"):
        with pytest.raises(ConfigurationError, match=r"would overwrite the input .*factory.safetensors"):
            check_output("the figures", tmp_path / name, inputs=(checkpoint, tmp_path / "missing"))


def test_an_output_folder_is_created_and_a_file_in_its_place_refused(tmp_path: Path) -> None:
    check_output_folder("the overlays", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="the overlays '.*' cannot be written"):
            check_output_folder("the overlays", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigurationError, match="check the permissions"):
            check_output("the report", tmp_path / "file")
    finally:
        tmp_path.chmod(0o700)


def test_a_report_may_contain_file_names_that_are_not_text(tmp_path: Path) -> None:
    write_text("the report", tmp_path / "report", os.fsdecode(b"images/\xff.png"))
    assert (tmp_path / "report").read_text() == r"images/\udcff.png"


IN_MOUNTS = """
set -e
{mounts}
exec "$PYTHON" - <<'CODE'
from pathlib import Path
from moleflow.model.errors import ConfigurationError
from moleflow.model.files.outputs import check_output
try:
    check_output("the report", Path("target/file"))
except ConfigurationError as error:
    print(error)
CODE
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    ("mounts", "hint"),
    [
        ("mount -t tmpfs -o ro tmpfs target", "Read-only file system"),
        ("mount -t tmpfs -o size=4k tmpfs target; head -c 4096 /dev/zero > target/full", "No space left on device"),
        ("mount -t tmpfs -o nr_inodes=1 tmpfs target", "No space left on device"),
        ("touch target/file other; mount --bind other target/file", "a mount point"),
    ],
)
def test_a_trial_write_finds_a_full_disk_and_a_mounted_file(tmp_path: Path, mounts: str, hint: str) -> None:
    import sys

    (tmp_path / "target").mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path / "target"]).returncode:
        pytest.skip("file systems cannot be mounted here")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", IN_MOUNTS.format(mounts=mounts)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert hint in done.stdout, done.stderr
