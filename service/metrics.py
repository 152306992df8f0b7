"""What the service counts and times, for Prometheus. Every app has a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of all durations: from a map of a small image to the upload of a large one."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper ends of the buckets of batch sizes."""


class Metrics:
    """The instruments of one app, named by what they count and its unit."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests answered", "route", "status")
        self.predictions = self._counter("predictions", "images judged, by product and verdict", "task", "verdict")
        self.inference_failures = self._counter("inference_failures", "batches that the model failed on")
        self.decoder_restarts = self._counter(
            "decoder_restarts", "decoding processes that an image or the system ended"
        )
        self.out_of_memory = self._counter("out_of_memory", "calls of the model that there was no memory for")
        self.expert_failures = self._counter(
            "expert_failures", "images without a verdict, for the expert of their product is damaged", "task"
        )
        self.self_test_failures = self._counter("self_test_failures", "blank images that the model failed on")
        self.request_seconds = self._histogram("request_duration_seconds", "whole request, upload included", "route")
        self.decode_seconds = self._histogram("decode_seconds", "decoding and resizing one image")
        self.queue_seconds = self._histogram("queue_seconds", "one image waiting for the model")
        self.inference_seconds = self._histogram("inference_seconds", "one batch in the model")
        self.encode_seconds = self._histogram("encode_seconds", "encoding one answer")
        self.batch_size = Histogram(
            "moleflow_batch_size", "images in one batch", buckets=_BATCH_SIZES, registry=self.registry
        )
        self.queue_length = self._gauge("queue_length", "images waiting for the model")
        self.requests_in_progress = self._gauge("requests_in_progress", "predictions accepted and not yet answered")
        self.uploads_in_progress = self._gauge("uploads_in_progress", "bodies of predictions being read")
        self.connections = self._gauge("connections", "open connections")
        self.connections_cut = self._counter(
            "connections_cut",
            "connections closed for new ones (room), for a late head (header), or for an answer not read (send)",
            "reason",
        )
        self.ready = self._gauge("ready", "1 when images are taken and the model works, else 0")
        self.live = self._gauge("live", "0 when nothing but a restart helps, else 1")
        self.damaged_products = self._gauge("damaged_products", "products whose expert was found damaged")
        self.batch_age = self._gauge("batch_age_seconds", "how long the model has been at what it does now")
        ProcessCollector(registry=self.registry)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge read its value whenever the metrics are asked for."""
        gauge.set_function(value)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, of type ``content_type``."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"moleflow_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"moleflow_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"moleflow_{name}", text, labels, buckets=_SECONDS, registry=self.registry)
