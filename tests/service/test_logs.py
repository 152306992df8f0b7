"""The log as JSON: one object a line, whatever is logged."""

import json
import logging
import re
import sys
from typing import Any

import httpx
import numpy as np
import pytest
from forked import Processes
from running import PATIENCE, serve_in_a_process
from sample_images import encoded, sample_image

from moleflow.service.exchange import Exchange, current
from moleflow.service.logs import JsonFormatter

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {
    "content-type": "image/png",
    "x-request-id": "part-42",
    "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
    "authorization": "Bearer secret-in-a-header",
}
WHEN_READY = "import warnings; warnings.warn('two\\nlines'); raise ValueError('in a\\nthread')"


def formatted(message: str, *arguments: Any, **extra: Any) -> dict[str, Any]:
    logger = logging.getLogger("test")
    record = logger.makeRecord(
        "test", logging.ERROR, "file", 1, message, arguments, extra.pop("exc_info", None), **extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line, parse_constant=pytest.fail)


def test_a_record_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        entry = formatted("failed on %r", "Würfel\u2028", exc_info=sys.exc_info())
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "test", "failed on 'Würfel\\u2028'")
    assert "ValueError: two\nlines" in entry["exception"]
    assert entry["time"].endswith("+00:00")


def test_numbers_that_json_does_not_know_are_null() -> None:
    assert formatted("", extra={"fields": {"score": float("nan"), "status": 200}}) | {"time": ""} == {
        "time": "",
        "level": "error",
        "logger": "test",
        "message": "",
        "score": None,
        "status": 200,
    }


def test_a_record_of_a_request_has_its_ids() -> None:
    token = current.set(Exchange("part-42", is_own_id=False, trace_id=TRACE))
    try:
        entry = formatted("failed")
    finally:
        current.reset(token)
    assert (entry["request_id"], entry["trace_id"]) == ("part-42", TRACE)


@pytest.fixture(scope="module")
def entries(processes: Processes) -> list[dict[str, Any]]:
    """What a process logs that warns, whose thread dies, and that gets a few requests."""
    with serve_in_a_process(processes, when_ready=WHEN_READY, log_format="json", cpu_workers=1) as process:
        # The test itself prints the address, between the lines of the log.
        process.wait_for(lambda: re.search(r"^http://.*\n", process.output(), re.M) is not None)
        (url,) = re.findall(r"^http://.*", process.output(), re.M)
        with httpx.Client(base_url=url, timeout=PATIENCE, headers=HEADERS) as client:
            client.post("/predict?task=green&x-secret=in-the-query", content=b"")
            client.post("/predict?map=none", content=encoded(sample_image()))
            client.post("/predict", content=encoded(np.full((60, 90, 3), 255, np.uint8)))  # the dummy fails on white
            client.head("/tasks/red%0Agreen")
            httpx.get(url + "/health/live")
        process.wait_for(lambda: "/health/live" in process.output())
        process.kill()
        done = process.finish()
    lines = [line for line in done.stdout.splitlines() if line != url]
    assert done.stderr == ""
    assert "secret" not in done.stdout
    return [json.loads(line) for line in lines]


def access(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["logger"] == "moleflow.access"]


def test_every_request_has_a_line_with_its_ids_and_what_was_found(entries: list[dict[str, Any]]) -> None:
    refused, found, failed, head, live = access(entries)
    wanted = {"method": "POST", "route": "/predict", "status": 200, "request_id": "part-42", "trace_id": TRACE}
    assert wanted.items() <= found.items()
    assert (found["product"], found["verdict"], found["address"]) == ("green", "good", "127.0.0.1")
    assert isinstance(found["score"], float)
    assert found["milliseconds"] > 0
    assert (refused["status"], refused["product"], failed["status"]) == (422, None, 500)
    assert (head["method"], head["route"], head["path"]) == ("HEAD", "/tasks/{name}", "/tasks/red%0Agreen")
    assert (live["trace_id"], len(live["request_id"])) == (None, 32)


def test_tracebacks_warnings_and_dying_threads_are_lines_too(entries: list[dict[str, Any]]) -> None:
    assert any("the dummy fails on white" in entry["message"] for entry in entries)
    (failed,) = [entry for entry in entries if entry["logger"] == "moleflow.service.problems"]
    assert failed["request_id"] == "part-42"
    assert "Traceback" in failed["exception"]
    (warned,) = [entry for entry in entries if entry["logger"] == "py.warnings"]
    assert "two\nlines" in warned["message"]
    assert any("ValueError: in a\nthread" in entry.get("exception", "") for entry in entries)
    assert any(entry["logger"] == "uvicorn.error" for entry in entries)
