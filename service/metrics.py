"""Prometheus metrics of the service. Every app has its own registry."""

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of all durations, from encoding a small map to a large upload."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the buckets of batch sizes."""

_CHANCES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Upper bounds of the buckets of p-values: the usual rates of false alarms, then quarters."""

_NOVELTIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
"""Upper bounds of the buckets of novelty scores, whose default limit is 0.7."""


_SCORES = (0, 5, 10, 20, 50, 100, 200, 500)
"""Upper bounds of the buckets of scores, in standard deviations or nats; thresholds are around 20 and 100."""


class Metrics:
    """The metrics of one app. Those with the label ``task`` are kept of served products only (``keep_products``)."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests", "route", "status")
        self.predictions = self._counter("predictions", "predictions, by product and verdict", "task", "verdict")
        self.inference_failures = self._counter("inference_failures", "batches on which the model failed")
        self.decoder_restarts = self._counter("decoder_restarts", "decoder processes that crashed or were killed")
        self.given_up = self._counter(
            "given_up",
            "accepted requests, or single images of larger ones, that were given up: past their deadline (expired), or "
            "because the client left (abandoned)",
            "reason",
        )
        self.out_of_memory = self._counter("out_of_memory", "model calls that ran out of memory")
        self.expert_failures = self._counter(
            "expert_failures", "images without a verdict because their product's expert is damaged", "task"
        )
        self.self_test_failures = self._counter("self_test_failures", "failed self-tests of the model on a blank image")
        self.request_seconds = self._histogram("request_duration_seconds", "whole request, upload included", "route")
        self.decode_seconds = self._histogram("decode_seconds", "decoding and resizing one image")
        self.queue_seconds = self._histogram("queue_seconds", "waiting time of one image before inference")
        self.inference_seconds = self._histogram("inference_seconds", "inference on one batch")
        self.encode_seconds = self._histogram("encode_seconds", "encoding one response")
        self.batch_size = self._histogram("batch_size", "images in one batch", buckets=_BATCH_SIZES)
        self.p_values = self._histogram(
            "p_value",
            "calibrated score of one image, by product: 0.01 is exceeded by 1 % of good images",
            "task",
            buckets=_CHANCES,
        )
        self.scores = self._histogram(
            "score", "raw score of one image, by product, in its own units", "task", buckets=_SCORES
        )
        self.novelty = self._histogram("novelty_score", "novelty score of one image", buckets=_NOVELTIES)
        self.queue_length = self._gauge("queue_length", "images waiting for the model")
        self.requests_in_progress = self._gauge("requests_in_progress", "accepted prediction requests in progress")
        self.uploads_in_progress = self._gauge("uploads_in_progress", "uploads being read")
        self.connections = self._gauge("connections", "open connections")
        self.connections_cut = self._counter(
            "connections_cut",
            "connections dropped to make room for new ones (room), because the request head was late (header), or "
            "because the client did not read the response (send)",
            "reason",
        )
        self.feedback = self._counter(
            "feedback", "feedback that was kept, by product and true verdict", "task", "verdict"
        )
        self.reloads = self._counter("reloads", "reloads of the checkpoint, by outcome (succeeded, failed)", "outcome")
        self.reload_failed = self._gauge(
            "reload_failed", "1 if the last reload failed, so that an older file is served"
        )
        self.ready = self._gauge("ready", "1 if the service accepts images and the model works, else 0")
        self.live = self._gauge("live", "0 if the service must be restarted, else 1")
        self.damaged_products = self._gauge("damaged_products", "products whose expert is damaged")
        self.batch_age = self._gauge("batch_age_seconds", "time since the model started its current batch")
        ProcessCollector(registry=self.registry)

    def keep_products(self, names: Collection[str]) -> None:
        """Forget all products but these, so that learning and renaming do not add series for ever."""
        for metric, labels in (
            (self.predictions, ("task", "verdict")),
            (self.feedback, ("task", "verdict")),
            (self.expert_failures, ("task",)),
            (self.p_values, ("task",)),
            (self.scores, ("task",)),
        ):
            samples = [sample.labels for family in metric.collect() for sample in family.samples]
            gone = {tuple(each[label] for label in labels) for each in samples if each["task"] not in names}
            for values in gone:
                if values[0]:  # an unknown product has no name
                    metric.remove(*values)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format (``content_type``)."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"moleflow_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"moleflow_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"moleflow_{name}", text, labels, buckets=buckets, registry=self.registry)
