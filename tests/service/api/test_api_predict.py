"""POST /predict: image formats and response formats."""

import base64
import io
import json

import numpy as np
import pytest
from dummy import SIZE
from PIL import Image
from running import Running
from sample_images import encoded, sample_image

from moleflow.model.images.decode import MAX_SIDE

PROBLEM = "application/problem+json"


def kinds() -> dict[str, bytes]:
    """An image in every format that occurs in practice."""
    rgb = Image.fromarray(sample_image())
    grey16 = np.linspace(0, 65535, 60 * 90).reshape(60, 90).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    transparent = rgb.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(rgb.size))
    frames = [Image.fromarray(sample_image(spot=spot)).convert("P") for spot in (False, True)]
    return {
        "png": encoded(rgb),
        "jpeg": encoded(rgb, "JPEG"),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True),
        "jpeg turned by exif": encoded(rgb, "JPEG", exif=exif.tobytes()),
        "grey jpeg": encoded(rgb.convert("L"), "JPEG"),
        "cmyk jpeg": encoded(rgb.convert("CMYK"), "JPEG"),
        "webp": encoded(rgb, "WEBP"),
        "bmp": encoded(rgb, "BMP"),
        "tiff": encoded(rgb, "TIFF"),
        "compressed tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "cmyk tiff": encoded(rgb.convert("CMYK"), "TIFF"),
        "16-bit png": encoded(Image.fromarray(grey16)),
        "16-bit tiff": encoded(Image.fromarray(grey16), "TIFF"),
        "grey png": encoded(rgb.convert("L")),
        "black-and-white png": encoded(rgb.convert("1")),
        "palette png": encoded(rgb.convert("P")),
        "palette png with a transparent colour": encoded(rgb.convert("P"), transparency=0),
        "rgba png": encoded(transparent),
        "grey png with alpha": encoded(transparent.convert("LA")),
        "gif": encoded(rgb, "GIF"),
        "animated gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated png": encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
    }


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_scored(service: Running, kind: str) -> None:
    response = service.predict(KINDS[kind], map="none")
    assert response.status_code == 200
    assert response.json()["image"] == {"width": 90, "height": 60}


def test_the_response_has_product_verdict_and_map(service: Running) -> None:
    found = service.predict(encoded(sample_image(spot=True))).json()
    assert found["task"] == {"name": "green", "index": 1}
    assert [c["name"] for c in found["routing"]["candidates"]] == ["green", "red", "blue"]
    assert found["routing"]["distance"] == found["routing"]["candidates"][0]["distance"]
    assert found["routing"]["margin"] > 0
    assert found["is_anomalous"] is True
    assert found["score"] > found["threshold"] == pytest.approx(100.0)
    assert found["checkpoint"] == {"name": "dummy.safetensors", "digest": "cd" * 32}
    assert found["timing_ms"].keys() == {"decode", "queue", "inference", "encode"}
    assert min(found["timing_ms"].values()) >= 0


def test_a_good_image_is_called_good(service: Running) -> None:
    assert service.predict(encoded(sample_image())).json()["is_anomalous"] is False


def test_a_multipart_form_gets_the_same_response_as_a_raw_body(service: Running) -> None:
    data = encoded(sample_image(spot=True))
    form = service.client.post("/predict", files={"file": ("a.png", data, "image/png")}).json()
    raw = service.predict(data).json()
    for answer in (form, raw):
        del answer["timing_ms"], answer["id"]
    assert form == raw


def test_a_raw_body_without_content_type_is_read(service: Running) -> None:
    with service.connect() as connection:
        data = encoded(sample_image())
        connection.sendall(
            b"POST /predict?map=none HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_the_map_peaks_at_the_defect(service: Running) -> None:
    found = service.predict(encoded(sample_image(spot=True)), map="npy").json()["anomaly_map"]
    values = np.load(io.BytesIO(base64.b64decode(found["data"])))
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert 15 <= row < 30
    assert 22 <= column < 45


def test_a_png_map_gives_the_same_values_as_an_npy_map(service: Running) -> None:
    data = encoded(sample_image(spot=True))
    png = service.predict(data, map="png").json()["anomaly_map"]
    npy = service.predict(data, map="npy").json()["anomaly_map"]
    assert (png["dtype"], npy["dtype"]) == ("uint16", "float32")
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(png["data"])))).astype(float)
    values = np.load(io.BytesIO(base64.b64decode(npy["data"])))
    real = png["minimum"] + stored / 65535 * (png["maximum"] - png["minimum"])
    assert np.abs(real - values).max() <= (png["maximum"] - png["minimum"]) / 65535
    assert (npy["minimum"], npy["maximum"]) == (values.min(), values.max())


@pytest.mark.parametrize(("size", "shape"), [("image", [60, 90]), ("model", [SIZE, SIZE])])
def test_the_map_has_the_requested_size(service: Running, size: str, shape: list[int]) -> None:
    found = service.predict(encoded(sample_image()), map_size=size).json()["anomaly_map"]
    assert found["shape"] == shape
    assert list(Image.open(io.BytesIO(base64.b64decode(found["data"]))).size) == shape[::-1]


def test_without_a_map_the_field_is_null(service: Running) -> None:
    assert service.predict(encoded(sample_image()), map="none").json()["anomaly_map"] is None


def test_a_named_product_skips_routing(service: Running) -> None:
    found = service.predict(encoded(sample_image()), task="blue").json()
    assert found["task"] == {"name": "blue", "index": 2}
    assert found["routing"]["forced"] is True
    assert found["routing"]["candidates"][0]["name"] == "green"


def test_accept_png_returns_the_overlay_at_the_size_of_the_image(service: Running) -> None:
    response = service.predict(encoded(sample_image(spot=True)), {"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == ("PNG", (90, 60))


def test_the_overlay_of_a_rotated_photograph_is_upright(service: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    response = service.predict(encoded(sample_image(), "JPEG", exif=exif.tobytes()), {"accept": "image/png"})
    assert Image.open(io.BytesIO(response.content)).size == (60, 90)


def test_accept_npy_returns_the_map_alone(service: Running) -> None:
    response = service.predict(encoded(sample_image()), {"accept": "application/x-npy"}, map_size="model")
    assert response.headers["content-type"] == "application/x-npy"
    values = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (values.shape, values.dtype) == ((SIZE, SIZE), np.float32)


def test_a_response_that_is_not_json_has_the_verdict_in_its_headers(service: Running) -> None:
    data = encoded(sample_image(spot=True))
    headers = service.predict(data, {"accept": "image/png"}).headers
    found = service.predict(data).json()
    assert headers["moleflow-task"] == "green"
    assert float(headers["moleflow-score"]) == found["score"]
    assert float(headers["moleflow-threshold"]) == found["threshold"]
    assert headers["moleflow-anomalous"] == "true"


def test_the_json_has_only_finite_numbers(service: Running) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(service.predict(encoded(sample_image())).text, parse_constant=refuse)


@pytest.mark.parametrize("accept", ["application/json", "image/png", "application/x-npy"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (MAX_SIDE, 1)])
def test_an_image_of_extreme_shape_is_scored(service: Running, width: int, height: int, accept: str) -> None:
    assert service.predict(encoded(sample_image(width, height)), {"accept": accept}).status_code == 200


@pytest.mark.parametrize(
    ("data", "headers", "query", "status", "hint"),
    [
        (b"hello", {}, {}, 415, "is not a PNG, JPEG"),
        (b"", {}, {}, 422, "body is empty"),
        (encoded(sample_image())[:120], {}, {}, 415, "save it again"),
        (encoded(sample_image(), "JPEG")[:400], {}, {}, 415, "save it again"),
        (encoded(Image.fromarray(np.zeros((5, 5), np.float32)), "TIFF"), {}, {}, 415, "floating-point"),
        (b"%PDF-1.7", {}, {}, 415, "save it as PNG or JPEG"),
        (b"{}", {"content-type": "application/json"}, {}, 415, "application/json"),
        (encoded(sample_image()), {"content-type": "multipart/form-data"}, {}, 422, "boundary"),
        (encoded(sample_image()), {}, {"task": "bottle"}, 404, "learned: red, green, blue"),
        (encoded(sample_image()), {}, {"map": "jpg"}, 422, "'none', 'png', 'npy' or 'npy16'"),
        (encoded(sample_image()), {}, {"map_size": "huge"}, 422, "'image' or 'model'"),
        (encoded(sample_image()), {}, {"tsk": "red"}, 422, "no query parameter 'tsk'"),
        (encoded(sample_image()), {"accept": "text/html"}, {}, 406, "application/x-npy"),
    ],
)
def test_a_bad_request_gets_a_problem_that_says_what_to_do(
    service: Running, data: bytes, headers: dict[str, str], query: dict[str, str], status: int, hint: str
) -> None:
    response = service.predict(data, headers, **query)
    problem = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM
    assert problem.keys() == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert hint in problem["detail"]


def test_a_form_without_the_field_is_rejected(service: Running) -> None:
    response = service.client.post("/predict", files={"image": ("a.png", encoded(sample_image()), "image/png")})
    assert response.status_code == 422
    assert "'file' is missing" in response.json()["detail"]


BLACK = encoded(np.zeros((60, 90, 3), np.uint8))


def test_an_image_of_an_unknown_product_gets_the_nearest_products(service: Running) -> None:
    before = service.metric("moleflow_predictions_total", verdict="unknown_product")
    response = service.predict(BLACK)
    found = response.json()
    assert response.status_code == 200
    assert found["verdict"] == "unknown_product"
    assert (found["task"], found["score"], found["anomaly_map"], found["regions"]) == (None, None, None, [])
    assert [candidate["name"] for candidate in found["routing"]["candidates"]] == ["red", "green", "blue"]
    assert service.metric("moleflow_predictions_total", verdict="unknown_product") == before + 1


def test_an_image_of_an_unknown_product_is_scored_if_a_product_is_named(service: Running) -> None:
    found = service.predict(BLACK, task="blue").json()
    assert (found["verdict"], found["task"]["name"]) == ("good", "blue")


@pytest.mark.parametrize("accept", ["image/png", "application/x-npy"])
def test_requesting_the_map_alone_fails_for_an_unknown_product(service: Running, accept: str) -> None:
    response = service.predict(BLACK, {"accept": accept})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:moleflow:problem:unknown-product"
    assert "the nearest product is 'red'" in response.json()["detail"]
    assert service.predict(BLACK, {"accept": accept}, task="red").status_code == 200


def test_the_response_has_raw_and_calibrated_score_and_false_alarm_rate(service: Running) -> None:
    found = service.predict(encoded(sample_image(spot=True))).json()
    assert (found["verdict"], found["false_alarm_rate"]) == ("anomalous", 0.01)
    assert found["p_value"] < found["false_alarm_rate"]
    assert service.predict(encoded(sample_image())).json()["p_value"] > 0.01


def test_the_false_alarm_rate_of_a_request_changes_only_its_thresholds(service: Running) -> None:
    data = encoded(sample_image(spot=True))
    usual = service.predict(data).json()
    strict = service.predict(data, false_alarm_rate="0.00001").json()
    after = service.predict(data).json()
    assert strict["false_alarm_rate"] == 0.00001
    assert strict["threshold"] > usual["threshold"]
    assert strict["pixel_threshold"] > usual["pixel_threshold"]
    assert (strict["score"], strict["p_value"]) == (usual["score"], usual["p_value"])
    assert after["threshold"] == usual["threshold"]


@pytest.mark.parametrize("rate", ["0", "1", "-1", "often", "nan"])
def test_a_false_alarm_rate_outside_0_to_1_is_rejected(service: Running, rate: str) -> None:
    response = service.predict(encoded(sample_image()), false_alarm_rate=rate)
    assert response.status_code == 422
    assert "false_alarm_rate" in response.json()["detail"]


def test_a_region_covers_the_defect_in_image_pixels(service: Running) -> None:
    [region] = service.predict(encoded(sample_image(900, 600, spot=True)), map="none").json()["regions"]
    # The spot covers columns 225 to 450 and rows 150 to 300, within the resolution of the map.
    assert region["x"] == pytest.approx(225, abs=900 / 8)
    assert region["x"] + region["width"] == pytest.approx(450, abs=900 / 8)
    assert region["y"] == pytest.approx(150, abs=600 / 8)
    assert region["y"] + region["height"] == pytest.approx(300, abs=600 / 8)
    assert 225 <= region["peak_x"] < 450
    assert 150 <= region["peak_y"] < 300
    assert 0 < region["area_fraction"] < 0.15


def test_a_good_image_has_no_region(service: Running) -> None:
    assert service.predict(encoded(sample_image())).json()["regions"] == []
