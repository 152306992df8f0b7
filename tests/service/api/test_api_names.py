"""Products are found by name in every Unicode normalisation form."""

import unicodedata
from collections.abc import Iterator
from typing import Literal
from urllib.parse import quote

import pytest
from dummy import DummyDetector
from running import Running, run_server
from sample_images import encoded, sample_image

NAMES = ("Café", "<b>&\"' =1+1", "[red] {0} %s #5? 瓶🔩")


@pytest.fixture(scope="module")
def odd() -> Iterator[Running]:
    """A service with unusual but valid product names."""
    with run_server(DummyDetector(NAMES)) as running:
        yield running


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_found_by_path_query_and_form_in_every_unicode_form(
    odd: Running, name: str, form: Literal["NFC", "NFD"]
) -> None:
    spelled = unicodedata.normalize(form, name)
    image = encoded(sample_image())
    asked = odd.client.get(f"/tasks/{quote(spelled, safe='')}")
    queried = odd.predict(image, task=spelled, map="none")
    posted = odd.client.post("/predict", files={"file": image}, data={"task": spelled, "map": "none"})
    assert asked.json()["name"] == queried.json()["task"]["name"] == posted.json()["task"]["name"] == name


def test_unusual_names_break_neither_headers_nor_metrics(odd: Running) -> None:
    for name in NAMES:
        answer = odd.predict(encoded(sample_image()), headers={"accept": "image/png"}, task=name)
        assert answer.headers["moleflow-task"] == quote(name)
    lines = odd.client.get("/metrics").text.splitlines()
    assert sum(line.startswith("moleflow_predictions_total{") for line in lines) == len(NAMES)


@pytest.mark.parametrize("name", ["two\nlines", "a\u202eb", "x" * 3000, "\x1b[31m", "Cafe"])
def test_an_unknown_name_gets_a_short_one_line_error(odd: Running, name: str) -> None:
    for answer in (odd.client.get(f"/tasks/{quote(name, safe='')}"), odd.predict(encoded(sample_image()), task=name)):
        assert answer.status_code == 404
        detail = answer.json()["detail"]
        assert detail.startswith("No product named") and detail.isprintable() and len(detail) < 600
