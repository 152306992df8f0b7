"""API keys: their file, and what each allows."""

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from pages import GOOD
from running import Running, run_server

from moleflow.model.errors import ConfigurationError
from moleflow.service.api import keys
from moleflow.service.api.keys import Access, Keys, needed_access, read_keys

LINE, TEACHER, OFFICE = "l" * 20, "t" * 20, "o" * 20
FILE = f"""# who  what     key
line-1   predict  {LINE}
teacher  teach    {TEACHER}

office   admin    sha256:{hashlib.sha256(OFFICE.encode()).hexdigest()}
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(FILE)
    with run_server(api_keys=path) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(FILE)
    return tmp_path / "keys"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key_a_request_is_refused_and_told_how_to_send_one(guarded: Running) -> None:
    response = guarded.predict(GOOD)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.json()["type"] == "urn:moleflow:problem:no-key"
    assert "Authorization: Bearer" in response.json()["detail"]


@pytest.mark.parametrize("key", ["x" * 20, LINE[:-1], LINE + "l", "é" * 20])
def test_a_wrong_key_is_refused(guarded: Running, key: str) -> None:
    response = guarded.client.get("/tasks", headers={b"Authorization": f"Bearer {key}".encode()})
    assert response.status_code == 401


@pytest.mark.parametrize("headers", [bearer(LINE), {"authorization": f"bearer  {LINE}"}, {"X-API-Key": LINE}])
def test_a_key_is_taken_from_either_header(guarded: Running, headers: dict[str, str]) -> None:
    assert guarded.predict(GOOD, headers).json()["verdict"] == "good"


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/docs", "/openapi.json", "/health/ready", "/health/live", "/samples"]
)
def test_page_documentation_and_probes_need_no_key(guarded: Running, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/tasks", "/tasks/red", "/metrics", "/nothing"])
def test_all_else_needs_one(guarded: Running, path: str) -> None:
    assert guarded.client.get(path).status_code == 401


def test_a_key_allows_what_its_scope_says_and_no_more(guarded: Running) -> None:
    refused = guarded.client.delete("/tasks/red", headers=bearer(TEACHER))
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:moleflow:problem:not-allowed")
    assert "'teacher' allows to teach" in refused.json()["detail"]
    # The dummy was not loaded from a file: the request is allowed and fails for that reason.
    assert guarded.client.post("/admin/reload", headers=bearer(OFFICE)).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("POST", "/predict", Access.PREDICT),
        ("POST", "/predict/batch", Access.PREDICT),
        ("GET", "/tasks/red", Access.PREDICT),
        ("POST", "/predictions/1/feedback", Access.TEACH),
        ("DELETE", "/tasks/red", Access.ADMIN),
        ("PATCH", "/tasks/red", Access.ADMIN),
        ("POST", "/tasks/red/images", Access.TEACH),
        ("GET", "/tasks/red/images/1.png", Access.TEACH),
        ("POST", "/tasks/red:train", Access.TEACH),
        ("DELETE", "/tasks/red/other", Access.ADMIN),
        ("GET", "/jobs/1/events", Access.TEACH),
        ("POST", "/admin/reload", Access.ADMIN),
        ("GET", "/health/ready", None),
    ],
)
def test_what_a_request_needs(method: str, path: str, access: Access | None) -> None:
    assert needed_access(method, path) == access


def test_keys_of_a_changed_file_apply_without_a_restart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0)
    known = Keys(file)
    file.write_text(f"line-1 admin {'n' * 20}\n")
    assert known.find(LINE) is None
    assert (key := known.find("n" * 20)) is not None
    assert key.access is Access.ADMIN


def test_a_changed_file_with_a_fault_changes_nothing_and_is_logged(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0)
    known = Keys(file)
    file.write_text("line-1 everything\n")
    assert known.find(LINE) is not None
    assert "still apply. Line 1 of" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# none\n", "has no API key"),
        (f"line-1 {LINE}\n", "Line 1 of .* must have three words"),
        (f"\nline-1 root {LINE}\n", "Line 2 of .* has the scope 'root'"),
        ("line-1 admin short\n", "a key of 5 characters; use at least 20"),
        (f"line-1 admin sha256:{'A' * 64}\n", "a digest that is not"),
        (f"a predict {LINE}\nb admin {LINE}\n", "the same API key twice"),
    ],
)
def test_a_file_with_a_fault_is_refused_with_its_line_and_without_its_keys(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as raised:
        read_keys(file)
    assert LINE not in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(file)
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(file)


def test_a_preflight_of_an_allowed_page_may_announce_a_key(file: Path) -> None:
    with run_server(api_keys=file, cors_origins="https://mes.factory") as running:
        headers = {
            "Origin": "https://mes.factory",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        response = httpx.options(f"{running.url}/predict", headers=headers)
    assert response.status_code == 200
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
