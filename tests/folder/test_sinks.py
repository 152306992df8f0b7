"""Rows on their way to a webhook and a broker: real servers on this machine."""

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from moleflow.folder import delivery
from moleflow.folder.delivery import Delivery
from moleflow.folder.output import open_output
from moleflow.folder.sinks import Mqtt, Sink, SinkError, Webhook
from moleflow.model.errors import ConfigurationError

ROWS: list[dict[str, Any]] = [
    {"path": f"{number}.png", "file": {"size": 1, "modified": 2.5}, "error": {"type": "x", "detail": "y"}}
    for number in range(3)
]


class Receiver:
    """A web server that answers with the given statuses, then with 200, and keeps what it got."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        got: list[tuple[int, Any, float]] = []
        self.got, pending = got, list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = pending.pop(0) if pending else 200
                got.append((status, body, time.monotonic()))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/rows"

    def __enter__(self) -> "Receiver":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Broker:
    """Enough of MQTT 3.1.1 to take messages with quality of service 1."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://user:secret@127.0.0.1:{self._listener.getsockname()[1]}/line%201/rows"
        self.connects: list[bytes] = []

    def __enter__(self) -> "Broker":
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(1):
                length, shift = 0, 0
                while True:
                    (byte,) = stream.read(1)
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body, kind = stream.read(length), head[0] >> 4
                if kind == 1:
                    self.connects.append(body)
                    connection.sendall(b"\x20\x02\x00\x00")
                elif kind == 3:
                    (size,) = struct.unpack_from(">H", body)
                    self.messages.append((body[2 : 2 + size].decode(), body[4 + size :]))
                    connection.sendall(b"\x40\x02" + body[2 + size : 4 + size])


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "backoff_seconds", lambda attempt: 0.0)


def deliver(path: Path, *sinks: Sink, rows: list[dict[str, Any]] = ROWS) -> Delivery:
    with contextlib.closing(open_output(path)) as output:
        assert list(output.known()) == []
        with Delivery(sinks, output, path).running() as running:
            for row in rows:
                running.put(row)
    return running


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_posted_as_json_and_written(tmp_path: Path) -> None:
    with Receiver() as receiver:
        done = deliver(tmp_path / "rows.jsonl", Webhook(receiver.url))
    assert [body for _, body, _ in receiver.got] == ROWS == lines(tmp_path / "rows.jsonl")
    assert done.undelivered == 0


def test_a_row_is_sent_again_after_the_time_that_the_receiver_names(tmp_path: Path) -> None:
    with Receiver(503, 500, headers={"Retry-After": "1"}) as receiver:
        deliver(tmp_path / "rows.jsonl", Webhook(receiver.url), rows=ROWS[:1])
    (_, _, first), (_, _, second), (status, body, third) = receiver.got
    assert second - first >= 1 and third - second >= 1
    assert (status, body) == (200, ROWS[0])


def test_a_row_that_is_refused_is_kept_beside_the_output_and_the_next_one_is_sent(tmp_path: Path) -> None:
    with Receiver(200, 400) as receiver:
        done = deliver(tmp_path / "rows.csv", Webhook(receiver.url))
    assert [status for status, _, _ in receiver.got] == [200, 400, 200]
    assert lines(tmp_path / "rows.csv.webhook-failed.jsonl") == ROWS[1:2]
    assert done.undelivered == 1
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4


def test_a_receiver_that_keeps_failing_gets_a_rest_and_no_row_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Receiver(*[500] * 50) as receiver:
        deliver(tmp_path / "rows.jsonl", Webhook(receiver.url))
    assert len(receiver.got) == delivery._ATTEMPTS
    assert lines(tmp_path / "rows.jsonl.webhook-failed.jsonl") == ROWS == lines(tmp_path / "rows.jsonl")
    assert capsys.readouterr().err.count("webhook fails: status 500") == 1


def test_a_redirect_and_a_missing_receiver_are_failures(tmp_path: Path) -> None:
    with Receiver(302, headers={"Location": "/elsewhere"}) as receiver, pytest.raises(SinkError, match="302") as caught:
        Webhook(receiver.url).send(b"{}")
    assert caught.value.is_final
    with pytest.raises(SinkError) as caught:
        Webhook(receiver.url).send(b"{}")
    assert not caught.value.is_final


def test_a_row_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    class Full:
        def append(self, rows: object) -> None:
            raise ConfigurationError("the disk is full")

    with pytest.raises(ConfigurationError, match="full"), Delivery((), Full(), tmp_path).running() as running:  # type: ignore[arg-type]
        for _ in range(1000):
            running.put(ROWS[0])


def test_an_interrupt_does_not_wait_for_a_failing_receiver(tmp_path: Path) -> None:
    def run(receiver: Receiver) -> None:
        with contextlib.closing(open_output(tmp_path / "rows.jsonl")) as output:
            list(output.known())
            with Delivery((Webhook(receiver.url),), output, tmp_path / "rows.jsonl").running() as running:
                running.put(ROWS[0])
                while not receiver.got:
                    time.sleep(0.01)
                raise KeyboardInterrupt

    started = time.monotonic()
    with Receiver(*[503] * 9, headers={"Retry-After": "60"}) as receiver, pytest.raises(KeyboardInterrupt):
        run(receiver)
    assert time.monotonic() - started < 30
    assert (tmp_path / "rows.jsonl").read_text() == ""  # to be sent by the next run


def test_every_row_is_published_and_acknowledged(tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    with Broker() as broker:
        deliver(tmp_path / "rows.jsonl", Mqtt(broker.url))
    assert [(topic, json.loads(body)) for topic, body in broker.messages] == [("line 1/rows", row) for row in ROWS]
    assert broker.connects[0].endswith(b"\x00\x04user\x00\x06secret")


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        (Webhook, "ftp://host/rows"),
        (Mqtt, "mqtt://host"),
        (Mqtt, "mqtt://host/rows/#"),
        (Mqtt, "http://host/rows"),
        (Mqtt, "mqtt://127.0.0.1:1/rows"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(kind: type[Webhook] | type[Mqtt], url: str) -> None:
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    with pytest.raises(ConfigurationError, match=r"should be|cannot be reached"):
        kind(url)


def test_without_its_library_mqtt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(ConfigurationError, match=r"moleflow\[mqtt\]"):
        Mqtt("mqtt://host/rows")
