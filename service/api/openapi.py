"""What ``/docs`` says about each route."""

from typing import Any

from moleflow.service.api.form import FILE_FIELD
from moleflow.service.api.options import PredictOptions
from moleflow.service.problems import MEDIA_TYPE, Problem

__all__ = ["COMMON", "DESCRIPTION", "LIVE", "METRICS", "PREDICT", "READY", "TASK", "TASKS"]

DESCRIPTION = """
One endpoint that finds defects on any product it has learned: send an image to `POST /predict`, and get the product,
a score against that product's threshold, the verdict, and a map of where the defect is.

Every error is a problem document (RFC 9457, `application/problem+json`) whose `detail` says what to do.
"""

_BINARY = {"type": "string", "format": "binary"}


def _as_field(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option as a form's field: left out, it has no value, and it cannot be null."""
    (given, *_) = schema.get("anyOf", [{}])
    return {name: value for name, value in (schema | given).items() if name != "anyOf" and value is not None}


_FORM = {
    "type": "object",
    "properties": {FILE_FIELD: _BINARY}
    | {name: _as_field(schema) for name, schema in PredictOptions.model_json_schema()["properties"].items()},
    "required": [FILE_FIELD],
    "additionalProperties": False,
}

_HEADERS = {
    "MoLEFlow-Verdict": {"description": "good or anomalous; not with JSON", "schema": {"type": "string"}},
    "MoLEFlow-Task": {"description": "product, percent-encoded; not with JSON", "schema": {"type": "string"}},
    "MoLEFlow-Score": {"description": "image score; not with JSON", "schema": {"type": "number"}},
    "MoLEFlow-P-Value": {"description": "calibrated score; not with JSON", "schema": {"type": "number"}},
    "MoLEFlow-Threshold": {"description": "the product's threshold; not with JSON", "schema": {"type": "number"}},
    "MoLEFlow-Anomalous": {"description": "the verdict as true or false; not with JSON", "schema": {"type": "boolean"}},
}

_EXAMPLE = {
    "verdict": "anomalous",
    "task": {"name": "bottle", "index": 0},
    "routing": {
        "distance": 27.1,
        "margin": 301.2,
        "candidates": [
            {"name": "bottle", "index": 0, "distance": 27.1, "p_value": 0.42, "distance_ratio": 0.08},
            {"name": "grid", "index": 1, "distance": 328.3, "p_value": 3.1e-17, "distance_ratio": 0.97},
        ],
        "novelty_score": 0.13,
        "forced": False,
    },
    "score": 812.3,
    "p_value": 0.0021,
    "threshold": 640.1,
    "false_alarm_rate": 0.01,
    "is_anomalous": True,
    "pixel_threshold": 512.6,
    "regions": [
        {
            "x": 612,
            "y": 188,
            "width": 97,
            "height": 141,
            "area_fraction": 0.0123,
            "peak": 774.9,
            "peak_x": 660,
            "peak_y": 251,
        }
    ],
    "anomaly_map": {
        "encoding": "png",
        "dtype": "uint16",
        "shape": [900, 900],
        "minimum": -318.2,
        "maximum": 774.9,
        "data": "iVBORw0KGgo…",
    },
    "image": {"width": 900, "height": 900},
    "warnings": [],
    "checkpoint": {"name": "factory.safetensors", "digest": "9f86d081884c7d65…"},
    "timing_ms": {"decode": 11.2, "queue": 0.4, "inference": 48.7, "encode": 24.1},
}


def _problem(description: str, **headers: str) -> dict[str, Any]:
    """The documentation of one error status."""
    named = {name: {"description": text, "schema": {"type": "integer"}} for name, text in headers.items()}
    documented: dict[str, Any] = {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
    return documented | ({"headers": {name.replace("_", "-"): text for name, text in named.items()}} if named else {})


COMMON: dict[int | str, dict[str, Any]] = {
    414: _problem("a query of thousands of bytes"),
    421: _problem("the request calls the service by a name that it does not answer to"),
}
"""What any request may be answered with."""

_NOT_READY = _problem(
    "no model yet, or no longer; it fails or does not come to an end; `detail` says which",
    Retry_After="seconds to wait",
)

PREDICT: dict[str, Any] = {
    "summary": "Judge one image",
    "description": (
        "Send the image as the raw body, or as the field `file` of a multipart form; the options of the query may be "
        "fields of the form instead. PNG, JPEG, WebP, BMP, TIFF and GIF are read, of several frames the first; "
        "transparent parts are laid on white, and the EXIF rotation is applied. Of 16-bit values the range counts that "
        "the product was learned with; `warnings` tells where an image does not fit it.\n\n"
        "`Accept` chooses the answer: `application/json`, the heat map over the image as `image/png`, or the bare "
        "float32 map as `application/x-npy` (with `map=npy16` float16). In the heat map the middle of the colours "
        "(red) is the threshold. Machines do best with `map_size=model`: the map then has all that the model found, "
        "and stays small however large the image is.\n\n"
        "`p_value` is the calibrated score: the chance that a good image of this product scores as high or higher. "
        "The threshold is the score that good images exceed at the `false_alarm_rate`, the pixel threshold what the "
        "peaks of their maps exceed; both come from good images that were held out of training. An image that no "
        "learned product explains gets the verdict `unknown_product`, without score and map, unless `task` names its "
        "product; a request for nothing but the map then gets status 422."
    ),
    "tags": ["prediction"],
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                # First what /docs offers to try: of a form it fills in every field.
                "application/octet-stream": {"schema": _BINARY},
                "image/*": {"schema": _BINARY},
                "multipart/form-data": {
                    "schema": _FORM,
                    "encoding": {FILE_FIELD: {"contentType": "image/png, image/jpeg, application/octet-stream"}},
                },
            },
        }
    },
    "responses": {
        200: {
            "description": "what was found",
            "headers": _HEADERS,
            "content": {
                "application/json": {"example": _EXAMPLE},
                "image/png": {"schema": _BINARY},
                "application/x-npy": {"schema": _BINARY},
            },
        },
        403: _problem("a browser sent it on behalf of a web page of another origin"),
        404: _problem("no product of that name was learned"),
        406: _problem("Accept asks for none of the forms of the answer"),
        408: _problem("the upload took too long"),
        413: _problem("more bytes or pixels than the limits allow"),
        415: _problem("not a readable image, or not a kind of body that is read"),
        422: _problem("no image in the body, an option that is not valid, or no map of an unknown product"),
        429: _problem("all places are taken", Retry_After="seconds to wait"),
        500: _problem("the model failed on this image, or (type `damaged-product`) its product's expert is damaged"),
        503: _NOT_READY,
    },
}

TASKS: dict[str, Any] = {
    "summary": "What was learned",
    "description": "The learned products in order of learning, each with its threshold and what it was learned from.",
    "tags": ["products"],
    "responses": {503: _NOT_READY},
}

TASK: dict[str, Any] = {
    "summary": "One learned product",
    "tags": ["products"],
    "responses": {404: _problem("no product of that name was learned"), 503: _NOT_READY},
}

LIVE: dict[str, Any] = {
    "summary": "Does it need no restart?",
    "description": (
        "503 when nothing but a restart helps: the model cannot be loaded, or its loading does not end; a batch takes "
        "twice its limit; the device is lost to this process; the inference thread ended. Restart it then."
    ),
    "tags": ["operation"],
    "responses": {503: _problem("nothing but a restart helps; `detail` says why")},
}

READY: dict[str, Any] = {
    "summary": "Are images taken, and judged?",
    "description": (
        "503 while the model is loaded, while it fails on a blank image too, while a batch takes longer than its "
        "limit, and from the moment that the service is told to stop. Send requests elsewhere then; it may get ready "
        "again by itself. `damaged_products` lists those whose images cannot be judged, while all others are."
    ),
    "tags": ["operation"],
    "responses": {503: _NOT_READY},
}

METRICS: dict[str, Any] = {
    "summary": "Counts and durations, for Prometheus",
    "tags": ["operation"],
    "responses": {200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}},
}
