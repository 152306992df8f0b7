"""Product list, health, metrics and documentation."""

import re

import pytest
from dummy import task_info
from prometheus_client.parser import text_string_to_metric_families
from running import Running, run_server
from sample_images import encoded, sample_image

from moleflow.model.verdict.results import TaskInfo
from moleflow.service.api.pages import PAGE
from moleflow.service.responses.schemas import Problem


def test_the_learned_products_are_listed_in_order(service: Running) -> None:
    found = service.client.get("/tasks").json()
    assert found["checkpoint"] == {"name": "dummy.safetensors", "digest": "cd" * 32}
    assert [task["name"] for task in found["tasks"]] == ["red", "green", "blue"]


def test_one_product_can_be_requested(service: Running) -> None:
    found = TaskInfo.model_validate_json(service.client.get("/tasks/green").content)
    assert found == task_info("green", 1)


def test_the_good_scores_of_a_product_are_a_histogram_up_to_its_threshold(service: Running) -> None:
    found = service.client.get("/tasks/green/scores").json()
    assert (found["task"], found["threshold"], found["images"]) == ({"name": "green", "index": 1}, 100.0, 100)
    assert sum(found["counts"]) == 100
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"][-1] >= 100.0


def test_a_product_with_any_name_can_be_requested() -> None:
    from dummy import DummyDetector

    name = "Würfel 5% & mehr"
    with run_server(DummyDetector([name])) as service:
        assert service.client.get(f"/tasks/{name.replace('%', '%25')}").json()["name"] == name
        headers = service.predict(encoded(sample_image()), {"accept": "image/png"}, task=name).headers
        assert headers["moleflow-task"] == "W%C3%BCrfel%205%25%20%26%20mehr"


def test_an_unknown_product_gets_a_404_problem_that_lists_the_known_ones(service: Running) -> None:
    response = service.client.get("/tasks/bottle")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "red, green, blue" in response.json()["detail"]


def test_a_ready_service_reports_what_it_serves(service: Running) -> None:
    assert service.client.get("/health/live").json() == {"status": "live"}
    found = service.client.get("/health/ready").json()
    assert (found["status"], found["tasks"], found["device"], found["precision"]) == ("ready", 3, "cpu", "fp32")


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", "/nothing", 404, "/nothing"),
        ("GET", "/page/nothing.js", 404, "/page/nothing.js"),
        ("GET", "/predict", 405, "use POST"),
        ("DELETE", "/tasks", 405, "use GET"),
    ],
)
def test_a_wrong_path_or_method_gets_a_problem(
    service: Running, method: str, path: str, status: int, hint: str
) -> None:
    response = service.client.request(method, path)
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.status) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"
    assert hint in problem.detail


def test_the_metrics_are_valid_and_count_requests(service: Running) -> None:
    before = service.metric("moleflow_predictions_total", task="green", verdict="anomalous")
    assert service.predict(encoded(sample_image(spot=True))).status_code == 200
    response = service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert names >= {
        "moleflow_requests",
        "moleflow_request_duration_seconds",
        "moleflow_decode_seconds",
        "moleflow_queue_seconds",
        "moleflow_inference_seconds",
        "moleflow_encode_seconds",
        "moleflow_batch_size",
        "moleflow_queue_length",
        "moleflow_predictions",
        "moleflow_ready",
    }
    assert service.metric("moleflow_predictions_total", task="green", verdict="anomalous") == before + 1
    assert service.metric("moleflow_ready") == 1


def test_requests_are_counted_by_route_and_status_never_by_path(service: Running) -> None:
    for name in ("a", "b", "c"):
        service.client.get(f"/tasks/{name}")
    assert service.metric("moleflow_requests_total", route="/tasks/{name}", status="404") >= 3
    assert 'route="/tasks/a"' not in service.client.get("/metrics").text


def test_two_services_in_one_process_have_separate_metrics() -> None:
    with run_server() as one, run_server() as other:
        one.predict(encoded(sample_image()))
        assert one.metric("moleflow_batch_size_count") == 1
        assert other.metric("moleflow_batch_size_count") == 0


def test_the_schema_documents_both_kinds_of_body_and_all_responses(service: Running) -> None:
    operation = service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert operation["requestBody"]["content"].keys() == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    assert operation["responses"]["200"]["content"].keys() == {"application/json", "image/png", "application/x-npy"}
    problems = {
        status
        for status, documented in operation["responses"].items()
        if "application/problem+json" in documented["content"]
    }
    assert problems == {
        *("400", "401", "403", "404", "406", "408", "413", "414", "415", "421", "422", "429", "500", "503", "504")
    }


def test_the_example_in_the_schema_is_a_valid_response(service: Running) -> None:
    from moleflow.service.responses.schemas import PredictionResponse

    documented = service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["responses"]["200"]
    PredictionResponse.model_validate(documented["content"]["application/json"]["example"])


def test_the_documentation_is_served_without_other_servers(service: Running) -> None:
    response = service.client.get("/docs")
    assert response.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]*)"', response.text)
    assert len(files) >= 4
    for file in files:
        assert service.client.get(f"/{file}").status_code == 200, file


@pytest.mark.skipif(not (PAGE / "index.html").is_file(), reason="this checkout has no page")
def test_the_page_and_its_files_are_served_and_revalidated(service: Running) -> None:
    response = service.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-cache"
    files = [file.name for file in PAGE.iterdir() if file.is_file()]
    for name in files:
        served = service.client.get(f"/page/{name}")
        assert served.content == (PAGE / name).read_bytes()
        assert served.headers["cache-control"] == "no-cache"
