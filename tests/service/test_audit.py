"""The audit log: a line for every change, with who, what, and the digests before and after."""

import json
import logging
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dummy import task_info
from running import eventually, serve_checkpoint
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import tiny_checkpoint

from moleflow.model.errors import ConfigurationError
from moleflow.model.verdict.records import CheckpointInfo
from moleflow.service.audit import Audit, Change

CHANGE = Change("PATCH /tasks/bolt", client="office", address="10.0.0.7", request_id="id-1", what={"name": "screw"})


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def served(digest: str, **thresholds: float) -> Any:
    tasks = [
        task_info(name, number).model_copy(update={"threshold": threshold})
        for number, (name, threshold) in enumerate(thresholds.items())
    ]
    return SimpleNamespace(checkpoint=CheckpointInfo("factory", digest), tasks=tasks)


def test_a_changed_threshold_is_recorded_with_both_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    with caplog.at_level(logging.INFO):
        Audit(path).record_served(CHANGE, served("aa", bolt=100, nut=5), served("bb", bolt=90, gear=5))
    (entry,) = entries(path)
    assert (entry["client"], entry["address"], entry["request_id"]) == ("office", "10.0.0.7", "id-1")
    assert (entry["action"], entry["what"]) == ("PATCH /tasks/bolt", {"name": "screw"})
    assert (entry["before"], entry["after"]) == ("aa", "bb")
    assert entry["products"]["changed"] == {"bolt": {"threshold": [100, 90]}}
    assert entry["products"]["removed"].keys() == {"nut"}
    assert entry["products"]["added"]["gear"]["sha256"] == "ab" * 32
    assert "PATCH /tasks/bolt by office at 10.0.0.7" in caplog.text
    assert entry["time"].endswith("+00:00")


def test_lines_are_appended_to_whatever_file_has_the_name_now(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.record(CHANGE)
    path.rename(tmp_path / "audit.1")
    audit.record(CHANGE)
    audit.record(Change("changed file"))
    assert [len(entries(tmp_path / "audit.1")), len(entries(path))] == [1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_long_value_is_recorded_as_its_digest(tmp_path: Path) -> None:
    before, after = served("aa", bolt=1), served("bb", bolt=1)
    after.tasks[0] = SimpleNamespace(model_dump=lambda **_: {"area": "x" * 2000}, name="bolt")
    before.tasks[0] = SimpleNamespace(model_dump=lambda **_: {"area": None}, name="bolt")
    Audit(tmp_path / "audit").record_served(CHANGE, before, after)
    (entry,) = entries(tmp_path / "audit")
    assert entry["products"]["changed"]["bolt"]["area"][1].startswith("sha256:")


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MOLEFLOW_AUDIT_LOG"):
        Audit(tmp_path / "no" / "audit")


def test_a_file_that_can_no_longer_be_written_is_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    audit = Audit(folder / "audit")
    (folder / "audit").unlink()
    folder.rmdir()
    audit.record(CHANGE)
    assert "cannot be written" in caplog.text


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt", "nut", "gear")).path


def test_changes_by_requests_and_of_the_file_are_recorded(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    (tmp_path / "keys").write_text(f"office admin {'o' * 20}\n")
    headers = {"X-API-Key": "o" * 20, "X-Request-ID": "id-1"}
    with serve_checkpoint(checkpoint, audit_log=path, api_keys=tmp_path / "keys") as running:
        client = running.client
        client.headers.update(headers)
        assert client.patch("/tasks/gear", json={"name": "wheel"}).status_code == 200
        assert client.delete("/tasks/wheel").status_code == 200
        assert client.delete("/tasks/wheel").status_code == 404
        assert client.post("/admin/reload").status_code == 200
        tiny_checkpoint(checkpoint, ("bolt",))
        assert eventually(lambda: len(client.get("/tasks").json()["tasks"]) == 1)
        assert eventually(lambda: len(entries(path)) == 4)
        checkpoint.write_bytes(b"broken")
        assert eventually(lambda: len(entries(path)) == 5)
    renamed, removed, reloaded, changed, broken = entries(path)
    assert (renamed["client"], renamed["address"], renamed["request_id"]) == ("office", "127.0.0.1", "id-1")
    assert (renamed["action"], renamed["what"]) == ("PATCH /tasks/gear", {"name": "wheel"})
    assert (removed["action"], removed["what"]) == ("DELETE /tasks/wheel", {"hide": False})
    assert removed["products"]["removed"].keys() == {"wheel"}
    assert removed["before"] == renamed["after"] != renamed["before"]
    assert (reloaded["action"], reloaded["before"]) == ("POST /admin/reload", reloaded["after"])
    assert (changed["action"], changed["client"], changed["address"]) == ("changed file", None, None)
    assert changed["products"]["removed"].keys() == {"nut"}
    assert (broken["after"], broken["before"]) == (None, changed["after"])
    assert broken["failed"]
    assert "o" * 20 not in path.read_text()
