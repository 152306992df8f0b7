"""The metrics of several processes are one text."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moleflow.service.siblings.exposition import merge


def text(product: str, count: int) -> str:
    registry = CollectorRegistry()
    Counter("seen_total", "images", ["task"], registry=registry).labels(product).inc(count)
    Histogram("wait", "seconds", registry=registry, buckets=(1.0,)).observe(0.5)
    return generate_latest(registry).decode()


def test_samples_keep_their_labels_and_get_the_process() -> None:
    merged = merge({0: text("bolt {a}", 2), 3: text('n"ut', 5)})
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(merged)
        for sample in family.samples
    }
    assert found["seen_total", ("process", "0"), ("task", "bolt {a}")] == 2
    assert found["seen_total", ("process", "3"), ("task", 'n"ut')] == 5
    assert found["wait_count", ("process", "3")] == 1
    assert found["wait_bucket", ("le", "1.0"), ("process", "0")] == 1
    assert found[("moleflow_processes",)] == 2


def test_each_family_is_described_once_and_its_samples_stay_together() -> None:
    lines = merge({0: text("bolt", 1), 1: text("bolt", 1)}).splitlines()
    assert lines.count("# TYPE seen_total counter") == 1
    places = [number for number, line in enumerate(lines) if line.startswith("seen_total{")]
    assert places == list(range(places[0], places[0] + 2))
