"""What `docker compose --profile monitoring up` adds: Prometheus with alerts, and Grafana with a board."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moleflow.service.engine.drift import Drift
from moleflow.service.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "monitoring"
PROMTOOL = shutil.which("promtool")
PROMETHEUS_OWN = {"up"}


def exported() -> set[str]:
    """The names of all series of the service."""
    metrics = Metrics()
    metrics.registry.register(Drift(lambda: ()))
    names = {"process_resident_memory_bytes"}
    for family in metrics.registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + end for end in ends}
    return names


def boards() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana" / "dashboards" / "moleflow.json").read_text())


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in boards()["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_alerts_and_board_use_metrics_that_the_service_exports() -> None:
    used = {name for text in expressions() for name in re.findall(r"\b(?:moleflow|process)_\w+", text)}
    assert used <= exported() | PROMETHEUS_OWN
    assert len(used) > 15


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    tested = subprocess.run(
        [str(PROMTOOL), "test", "rules", "alerts_test.yml"], cwd=FOLDER, capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")
def test_prometheus_accepts_its_configuration() -> None:
    checked = subprocess.run(
        [str(PROMTOOL), "check", "config", "prometheus.yml"], cwd=FOLDER, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in cases for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in group["rules"]}


def test_the_panels_do_not_overlap_and_have_names() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in boards()["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert panel["title"]
        assert not cells & own
        assert all(x < 24 for x, _ in own)
        cells |= own


def test_files_that_containers_mount_exist_and_are_published_on_this_machine_only() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        mounted = [volume.partition(":")[0] for volume in services[name]["volumes"]]
        assert all((ROOT / path).is_dir() for path in mounted if path.startswith("./"))
        assert services[name]["profiles"] == ["monitoring"]
        assert services[name]["ports"][0].startswith("${MOLEFLOW_PUBLISH:-127.0.0.1}:")
