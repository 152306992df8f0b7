"""Who may change what is served."""

from pathlib import Path

import pytest
from running import Running, run_server

CHANGES = [("DELETE", "/tasks/red"), ("PATCH", "/tasks/red"), ("PUT", "/tasks/red/area"), ("DELETE", "/tasks/red/area")]


def problem(service: Running, **headers: str) -> str:
    """The type of the problem that a request to reload the dummy gets, which it cannot be."""
    return service.client.post("/admin/reload", headers=headers).json()["type"].rpartition(":")[2]


def test_a_program_on_this_machine_may(service: Running) -> None:
    assert problem(service) == "not-reloaded"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_a_client_behind_a_proxy_may_not(service: Running, header: str) -> None:
    response = service.client.post("/admin/reload", headers={header: "127.0.0.1"})
    assert (response.status_code, response.json()["type"]) == (403, "urn:moleflow:problem:not-allowed")
    assert "MOLEFLOW_ADMIN" in response.json()["detail"]


def test_a_web_page_of_another_origin_may_not(service: Running) -> None:
    assert problem(service, Origin="https://elsewhere.example") == "foreign-page"


def test_nobody_may_with_the_setting_none() -> None:
    with run_server(admin="none") as service:
        assert problem(service) == "not-allowed"


def test_anybody_may_with_the_setting_any() -> None:
    with run_server(admin="any") as service:
        assert problem(service, Via="proxy") == "not-reloaded"


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_products_are_changed_by_those_who_may_only(service: Running, method: str, path: str) -> None:
    response = service.client.request(method, path, headers={"Via": "proxy"}, json={"name": "crimson"})
    assert (response.status_code, response.json()["type"]) == (403, "urn:moleflow:problem:not-allowed")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"name": 3}', 422, "body parameter 'name'"),
        (b'{"title": "crimson"}', 422, "no body parameter 'title'"),
        (b"{", 422, "JSON"),
        (b'{"name": "' + b"a" * 20_000 + b'"}', 413, "limit"),
    ],
)
def test_a_wrong_body_is_a_problem_that_says_why(service: Running, body: bytes, status: int, says: str) -> None:
    response = service.client.patch("/tasks/red", content=body)
    assert response.status_code == status
    assert says in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b'{"ignore": [[[0, 0], [1, 1]]]}', "application/json", 422, "at least 3 points"),
        (b'{"ignore": [[[0, 0], [1, 1], [0, 2]]]}', "application/json", 422, "less than or equal to 1"),
        (b'{"areas": []}', "application/json", 422, "no body parameter 'areas'"),
        (b" " * 300_000, "application/json", 413, "limit"),
        (b"no image", "image/png", 415, "image"),
        (b"no image", "text/plain", 415, "not supported"),
    ],
)
def test_what_is_no_area_is_a_problem_that_says_why(
    service: Running, body: bytes, kind: str, status: int, says: str
) -> None:
    response = service.client.put("/tasks/red/area", content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert says in response.json()["detail"]


def test_an_exported_folder_is_not_changed(tmp_path: Path) -> None:
    with run_server(checkpoint=tmp_path) as service:
        response = service.client.delete("/tasks/red")
        assert (response.status_code, response.json()["type"]) == (409, "urn:moleflow:problem:not-changed")
        assert "export" in response.json()["detail"]
