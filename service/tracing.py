"""Spans of OpenTelemetry, if it is installed (extra ``tracing``) and a provider is set up; else nothing.

Steps are recorded after the fact: they run in other threads and processes, which time them anyway.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter, time_ns
from typing import Any

import moleflow
from moleflow.model.verdict.results import Finding, Prediction

try:
    from opentelemetry import propagate, trace
except ImportError:
    _has_api = False
else:
    _has_api = True

__all__ = ["Span", "record_step", "request_span", "span"]


class Span:
    """A span of OpenTelemetry, or a stand-in for none."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """The trace as 32 hexadecimal digits, if there is one."""
        return None if self._span is None else f"{self._span.get_span_context().trace_id:032x}"

    def set(self, **attributes: Any) -> None:
        """Set attributes; their names' first underscore stands for a dot."""
        if self._span is not None:
            self._span.set_attributes({name.replace("_", ".", 1): value for name, value in attributes.items()})

    def finish(self, method: str, route: str, status: int) -> None:
        """Set what is known of a request at its end, unless the framework's span has ended before."""
        if self._span is not None and self._span.is_recording():
            self._span.update_name(f"{method} {route}")
            self._span.set_attributes(
                {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            )
            if status >= 500:
                self._span.set_status(trace.StatusCode.ERROR)

    def describe(self, finding: Finding) -> None:
        """Set the attributes of what was found in an image."""
        if self._span is None:
            return
        self.set(moleflow_verdict=finding.verdict.value, moleflow_novelty_score=float(finding.novelty_score))
        if isinstance(finding, Prediction):
            self.set(
                moleflow_product=finding.task.name,
                moleflow_score=float(finding.score),
                moleflow_p_value=float(finding.p_value),
            )


_NONE: AbstractContextManager[Span] = nullcontext(Span())


def request_span(name: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
    """The span of a request, in the trace that its headers name.

    It is that of the framework, if one is open: later releases of FastAPI and instrumentations make one.
    """
    if (tracer := _tracer()) is None:
        return _NONE
    if (around := trace.get_current_span()).is_recording():
        return nullcontext(Span(around))
    return _wrapped(tracer.start_as_current_span(name, propagate.extract(headers), kind=trace.SpanKind.SERVER))


def span(name: str) -> AbstractContextManager[Span]:
    """A span inside the current one."""
    return _NONE if (tracer := _tracer()) is None else _wrapped(tracer.start_as_current_span(name))


def record_step(name: str, started: float, seconds: float) -> None:
    """Record a step that began at ``started``, in the time of ``perf_counter``, inside the current span."""
    if (tracer := _tracer()) is not None:
        start = time_ns() - round((perf_counter() - started) * 1e9)
        tracer.start_span(name, start_time=start).end(start + round(seconds * 1e9))


@contextmanager
def _wrapped(opened: AbstractContextManager[Any]) -> Iterator[Span]:
    with opened as found:
        yield Span(found)


def _tracer() -> Any:
    """The tracer, or ``None`` if nobody has set up a provider, so that untraced requests cost nothing."""
    if not _has_api:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer("moleflow", moleflow.__version__)
