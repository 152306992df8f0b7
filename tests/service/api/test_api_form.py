"""Options as form fields, under the same names as in the query."""

from typing import Any

import pytest
from httpx import Response
from running import Running
from sample_images import encoded, sample_image

from moleflow.service.api.options import PredictOptions

IMAGE = encoded(sample_image(spot=True))


def send(service: Running, *fields: tuple[str, Any], **query: str) -> Response:
    """Send a form with these fields in this order; the field ``file`` is the image."""
    parts = [(name, ("a.png", IMAGE) if name == "file" else (None, value)) for name, value in fields]
    return service.client.post("/predict", files=parts, params=query)


FILE = ("file", None)


@pytest.mark.parametrize(
    "fields", [[FILE, ("task", "blue"), ("map", "none")], [("task", "blue"), ("map", "none"), FILE]]
)
def test_form_options_may_precede_or_follow_the_file(service: Running, fields: list[Any]) -> None:
    found = send(service, *fields).json()
    assert (found["task"]["name"], found["routing"]["forced"], found["anomaly_map"]) == ("blue", True, None)


def test_every_query_option_works_as_a_form_field(service: Running) -> None:
    values = {"task": "red", "false_alarm_rate": "0.02", "map": "npy", "map_size": "model"}
    assert values.keys() == PredictOptions.model_fields.keys()
    form, query = send(service, FILE, *values.items()).json(), send(service, FILE, **values).json()
    for answer in (form, query):
        del answer["timing_ms"], answer["id"]
    assert form == query


def test_the_same_value_in_query_and_form_is_accepted(service: Running) -> None:
    assert send(service, FILE, ("map", "none"), map="none").json()["anomaly_map"] is None


@pytest.mark.parametrize(
    ("fields", "query", "hint"),
    [
        ([("tsak", "blue")], {}, "no form field 'tsak'"),
        ([("map", "jpeg")], {}, "form field 'map' is 'jpeg'"),
        ([("false_alarm_rate", "nan")], {}, "false_alarm_rate"),
        ([("map", "none"), ("map", "png")], {}, "given once"),
        ([("map", "none"), ("map", "none")], {}, "given once"),
        ([("map", "none")], {"map": "png"}, "as in the query"),
    ],
)
def test_an_invalid_option_is_rejected_and_named(
    service: Running, fields: list[Any], query: dict[str, str], hint: str
) -> None:
    for order in ([FILE, *fields], [*fields, FILE]):
        response = send(service, *order, **query)
        assert response.status_code == 422
        assert hint in response.json()["detail"]


def test_an_unknown_product_in_a_form_is_rejected(service: Running) -> None:
    response = send(service, FILE, ("task", "bottle"))
    assert response.status_code == 404
    assert "red, green, blue" in response.json()["detail"]


def test_an_option_given_twice_in_the_query_is_rejected(service: Running) -> None:
    response = service.client.post("/predict?map=none&map=png", content=IMAGE)
    assert response.status_code == 422
    assert "given once" in response.json()["detail"]


def test_the_schema_lists_the_form_fields(service: Running) -> None:
    operation = service.client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"].keys() == {"file", *PredictOptions.model_fields}
    given = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
    assert given == list(PredictOptions.model_fields)
