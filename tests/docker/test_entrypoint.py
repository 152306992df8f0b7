"""The entrypoint of the container, run with a fake ``moleflow`` command."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "docker/entrypoint.sh"

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1" in
demo)
    mkdir -p "$4"
    if [ -n "${DEMO_HANGS:-}" ]; then
        trap 'echo stopped >> "$CALLS"; exit 1' TERM
        echo waiting >> "$CALLS"
        while :; do sleep 0.05; done
    fi
    [ -z "${DEMO_FAILS:-}" ] || exit 7
    echo weights > "$4/demo.safetensors" ;;
esac
"""


class Container:
    """What the entrypoint needs: a directory for checkpoints and a ``moleflow`` command."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        self.models.mkdir()
        self.log = root / "calls"
        program = root / "bin/moleflow"
        program.parent.mkdir()
        program.write_text(STAND_IN, encoding="utf-8")
        program.chmod(0o755)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MOLEFLOW_")}
        path = f"{program.parent}:{os.environ['PATH']}"
        self.environment = inherited | {"PATH": path, "CALLS": str(self.log), "MOLEFLOW_MODELS": str(self.models)}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", str(ENTRYPOINT), *arguments], env=self.environment | variables, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, **variables: str) -> int:
        process = self.start(*arguments, **variables)
        process.communicate(timeout=60)
        return process.returncode

    @property
    def calls(self) -> list[str]:
        """The calls of ``moleflow``, in order."""
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def add_checkpoint(self, name: str, modified: int) -> Path:
        path = self.models / name
        path.write_bytes(b"weights")
        os.utime(path, (modified, modified))
        return path


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_the_only_checkpoint_is_served(container: Container) -> None:
    path = container.add_checkpoint("factory.safetensors", 1_000)
    assert container.run() == 0
    assert container.calls == [f"serve {path}"]


def test_the_newest_of_several_checkpoints_is_served(container: Container) -> None:
    container.add_checkpoint("demo.safetensors", 1_000)
    newest = container.add_checkpoint("factory.safetensors", 3_000)
    container.add_checkpoint("older.safetensors", 2_000)
    container.run()
    assert container.calls == [f"serve {newest}"]


def test_without_a_checkpoint_the_newest_exported_folder_is_served(container: Container) -> None:
    for name, modified in (("old", 1_000), ("new", 2_000)):
        (container.models / name).mkdir()
        container.add_checkpoint(f"{name}/manifest.json", modified)
    container.run()
    checkpoint = container.add_checkpoint("factory.safetensors", 1_000)
    container.run()
    assert container.calls == [f"serve {container.models / 'new'}", f"serve {checkpoint}"]


def test_the_configured_checkpoint_is_served_even_if_it_is_not_the_newest(container: Container) -> None:
    asked = container.add_checkpoint("factory.safetensors", 1_000)
    container.add_checkpoint("newer.safetensors", 2_000)
    container.run(MOLEFLOW_CHECKPOINT=str(asked))
    assert container.calls == [f"serve {asked}"]


def test_a_missing_configured_checkpoint_is_not_replaced_by_the_demo(container: Container) -> None:
    container.run(MOLEFLOW_CHECKPOINT="/models/absent.safetensors")
    assert container.calls == ["serve /models/absent.safetensors"]


def test_a_path_with_a_space_stays_one_argument(container: Container) -> None:
    path = container.add_checkpoint("my factory.safetensors", 1_000)
    container.run()
    assert container.calls == [f"serve {path}"]


def test_files_other_than_checkpoints_are_ignored(container: Container) -> None:
    for name in ("factory.training", ".factory.safetensors.x1.tmp", "factory.jsonl"):
        container.add_checkpoint(name, 9_000)
    path = container.add_checkpoint("factory.safetensors", 1_000)
    container.run()
    assert container.calls == [f"serve {path}"]


def test_without_a_checkpoint_the_demo_is_trained_and_served(container: Container) -> None:
    assert container.run() == 0
    directory, checkpoint = container.models / "demo", container.models / "demo.safetensors"
    assert container.calls == [f"demo --no-serve --directory {directory}", f"serve {checkpoint}"]
    assert checkpoint.is_file()


def test_the_demo_is_trained_once(container: Container) -> None:
    container.run()
    container.run()
    assert [call.split()[0] for call in container.calls] == ["demo", "serve", "serve"]


def test_nothing_is_served_when_the_demo_cannot_be_trained(container: Container) -> None:
    assert container.run(DEMO_FAILS="yes") == 7
    assert [call.split()[0] for call in container.calls] == ["demo"]


def test_an_interrupted_demo_training_is_continued_and_not_served(container: Container) -> None:
    (container.models / "demo").mkdir()
    (container.models / "demo/demo.safetensors").write_bytes(b"one product of three")
    container.run()
    assert [call.split()[0] for call in container.calls] == ["demo", "serve"]


def test_a_signal_stops_the_training_before_the_script_exits(container: Container) -> None:
    process = container.start(DEMO_HANGS="yes")
    while "waiting" not in container.calls:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert container.calls[-1] == "stopped"


def test_a_directory_that_cannot_be_written_to_is_named(container: Container) -> None:
    process = container.start(MOLEFLOW_MODELS=str(container.models / "absent"))
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{container.models / 'absent'} contains no checkpoint" in message


def test_arguments_are_passed_to_moleflow_unchanged(container: Container) -> None:
    container.run("train", "/data", "--task", "bottle")
    assert container.calls == ["train /data --task bottle"]
