"""Ids of requests and spans of OpenTelemetry, with its real SDK."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from running import Running, run_server
from sample_images import encoded, sample_image
from starlette.responses import Response

from moleflow.service import tracing
from moleflow.service.api.observing import Observed
from moleflow.service.metrics import Metrics

GOOD = encoded(sample_image())
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def test_a_clients_id_is_returned_with_every_answer(service: Running) -> None:
    headers = {"X-Request-ID": "part-42"}
    for response in (service.predict(GOOD, headers), service.client.get("/nothing", headers=headers)):
        assert response.headers.get_list("x-request-id") == ["part-42"]


def test_without_one_the_id_of_the_answer_is_that_of_the_request(service: Running) -> None:
    response = service.predict(GOOD, map="none")
    assert response.headers["x-request-id"] == response.json()["id"]
    assert service.predict(GOOD, map="none").headers["x-request-id"] != response.headers["x-request-id"]


def test_an_id_that_a_client_repeats_is_not_that_of_its_answers(service: Running) -> None:
    ids = {service.predict(GOOD, {"X-Request-ID": "same"}, map="none").json()["id"] for _ in range(2)}
    assert len(ids | {"same"}) == 3


def test_an_id_that_cannot_be_logged_is_replaced(service: Running) -> None:
    response = service.client.get("/tasks", headers={"X-Request-ID": "a b"})
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The spans of a provider of the real SDK, in memory."""
    pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def spans(exported: Any) -> dict[str, Any]:
    """The spans by name."""
    return {span.name: span for span in exported.get_finished_spans()}


def test_the_steps_of_a_prediction_are_spans_of_the_clients_trace(exported: Any) -> None:
    with run_server() as running:
        assert running.predict(encoded(sample_image(spot=True)), TRACED).json()["verdict"] == "anomalous"
    found = spans(exported)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    steps = [found[name] for name in ("decode", "queue", "inference", "encode")]
    assert {step.parent.span_id for step in steps} == {found["predict"].context.span_id}
    for before, after in itertools.pairwise(steps):
        assert before.start_time <= before.end_time <= after.end_time
        assert found["predict"].start_time <= before.start_time
    attributes = found["predict"].attributes
    assert (attributes["moleflow.product"], attributes["moleflow.verdict"]) == ("green", "anomalous")
    assert isinstance(attributes["moleflow.score"], float)
    server = found["POST /predict"]
    assert server.attributes["moleflow.product"] == "green"
    assert len(server.attributes["moleflow.request_id"]) == 32
    assert server.parent.span_id == int(PARENT, 16)


def test_a_failed_prediction_is_a_failed_span(exported: Any) -> None:
    with run_server() as running:
        assert running.predict(b"no image").status_code == 415
    assert spans(exported)["predict"].status.status_code.name == "ERROR"


@pytest.mark.parametrize("headers", [TRACED, {}])
def test_a_request_gets_a_span_where_the_framework_makes_none(exported: Any, headers: dict[str, str]) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def send(message: Any) -> None:
        pass

    asyncio.run(Observed(Response(status_code=500), Metrics())(scope, None, send))  # type: ignore[arg-type]
    (span,) = exported.get_finished_spans()
    assert (span.name, span.kind.name, span.attributes["http.response.status_code"]) == ("GET other", "SERVER", 500)
    assert scope["state"]["exchange"].trace_id == f"{span.context.trace_id:032x}"
    assert (span.parent is not None) == bool(headers)
    if headers:
        assert f"{span.context.trace_id:032x}" == TRACE


def test_without_opentelemetry_there_are_no_spans(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_has_api", False)
    with tracing.request_span("GET", TRACED) as request, tracing.span("predict") as span:
        tracing.record_step("decode", 0, 1)
        span.set(moleflow_product="green")
    assert request.trace_id is None
    assert exported.get_finished_spans() == ()
