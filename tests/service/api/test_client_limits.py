"""Limits for each client, by API key or by address."""

from pathlib import Path

import pytest
from running import run_server
from sample_images import encoded, sample_image

from moleflow.service.api import client_limits
from moleflow.service.api.client_limits import ClientLimits
from moleflow.service.errors import ClientLimitError

GOOD = encoded(sample_image())
KEYS = {name: {"X-API-Key": name * 20} for name in "ab"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number."""
    time = [100.0]
    monkeypatch.setattr(client_limits, "monotonic", lambda: time[0])
    return time


def send(limits: ClientLimits, name: str = "a") -> float:
    """Send a short request; seconds to wait, or 0 if it was admitted."""
    try:
        with limits.admit(name):
            return 0.0
    except ClientLimitError as error:
        return error.retry_after_seconds


def test_a_second_worth_of_requests_may_come_at_once(clock: list[float]) -> None:
    limits = ClientLimits(4, 0)
    assert [send(limits) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert send(limits, "b") == 0
    clock[0] += 0.25
    assert [send(limits), send(limits)] == [0, 0.25]
    clock[0] += 1000
    assert [send(limits) for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_less_than_one_request_per_second_is_a_limit_too(clock: list[float]) -> None:
    limits = ClientLimits(0.1, 0)
    assert send(limits) == 0
    assert send(limits) == pytest.approx(10)
    clock[0] += 10
    assert send(limits) == 0


def test_clients_are_forgotten_but_not_while_they_have_requests(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "_MAX_CLIENTS", 3)
    limits = ClientLimits(1, 1)
    with limits.admit("busy"):
        for number in range(10):
            assert send(limits, str(number)) == 0
        assert len(limits) == 3
        assert send(limits, "busy") > 0


def test_a_client_with_too_many_requests_is_told_when_to_come_again(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("".join(f"client-{name} predict {name * 20}\n" for name in "ab"))
    with run_server(api_keys=tmp_path / "keys", client_requests_per_second=0.01) as running:
        assert running.predict(GOOD, KEYS["a"]).status_code == 200
        refused = running.predict(GOOD, KEYS["a"])
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:moleflow:problem:client-limit")
        assert 90 < int(refused.headers["retry-after"]) <= 100
        files = [("file", ("a.png", GOOD, "image/png"))]
        assert running.client.post("/predict/batch", files=files, headers=KEYS["a"]).status_code == 429
        assert running.client.post("/v2/models/moleflow/infer", headers=KEYS["a"]).status_code == 429
        assert running.client.get("/tasks", headers=KEYS["a"]).status_code == 200
        assert running.predict(GOOD, KEYS["b"]).status_code == 200


def test_requests_in_progress_are_limited_and_freed_when_answered() -> None:
    with run_server(client_requests_in_progress=1) as running:
        holder = running.hold()
        refused = running.predict(GOOD)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        running.detector.gate.set()
        holder.join()
        assert [running.predict(GOOD).status_code, running.predict(b"no image").status_code] == [200, 415]
        assert running.predict(GOOD).status_code == 200
        assert running.detector.batches == [1, 1, 1]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("testclient", "other", False),
    ],
)
def test_addresses_of_one_network_of_ipv6_are_one_client(one: str, other: str, is_same: bool) -> None:
    from starlette.requests import Request

    def client(host: str) -> str:
        return client_limits._client_of(Request({"type": "http", "client": (host, 1)}))

    assert (client(one) == client(other)) == is_same
