"""Metrics by product: what they count, and that their number is bounded."""

from pathlib import Path

from running import Running, eventually, serve_checkpoint
from sample_images import encoded, sample_image
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import product_image, tiny_checkpoint

from moleflow.service.metrics import Metrics


def samples(metrics: Metrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


def observe(metrics: Metrics, name: str) -> None:
    metrics.predictions.labels(name, "good").inc()
    metrics.predictions.labels(name, "anomalous").inc()
    metrics.p_values.labels(name).observe(0.5)
    metrics.scores.labels(name).observe(30)


def test_a_product_adds_a_bounded_number_of_samples() -> None:
    metrics = Metrics()
    metrics.predictions.labels("", "unknown_product").inc()
    before = samples(metrics)
    for number in range(1000):
        observe(metrics, f"product{number}")
    assert samples(metrics) - before <= 1000 * 30
    metrics.keep_products({"product7"})
    assert samples(metrics) - before <= 30
    assert b'task="product7"' in metrics.render()
    assert b'moleflow_predictions_total{task="",verdict="unknown_product"} 1.0' in metrics.render()


def test_scores_and_p_values_are_counted_by_product(service: Running) -> None:
    assert service.predict(encoded(sample_image(spot=True)), false_alarm_rate="0.3").status_code == 200
    assert service.predict(encoded(sample_image()), task="blue").status_code == 200
    for name in ("moleflow_score", "moleflow_p_value"):
        assert service.metric(f"{name}_count", task="green") == 1
        assert service.metric(f"{name}_count", task="blue") == 1
    score = service.predict(encoded(sample_image()), task="blue").json()["score"]
    assert service.metric("moleflow_score_sum", task="blue") == 2 * score


def test_the_series_of_a_product_that_has_gone_end(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt", "nut")).path
    with serve_checkpoint(path) as running:
        for name in ("bolt", "nut"):
            assert running.predict(encoded(product_image(0, 50)), task=name).status_code == 200
        assert running.client.delete("/tasks/nut").status_code == 200
        assert eventually(lambda: running.metric("moleflow_score_count", task="nut") == 0)
        assert 'task="nut"' not in running.client.get("/metrics").text
        assert running.metric("moleflow_score_count", task="bolt") == 1
