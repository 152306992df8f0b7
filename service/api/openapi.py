"""The OpenAPI documentation of each route, as shown at ``/docs``."""

from typing import Any

from moleflow.service.api.deadline import MAX_MILLISECONDS, TIMEOUT_HEADER
from moleflow.service.api.form import FILE_FIELD
from moleflow.service.api.options import BatchOptions, PredictOptions
from moleflow.service.problems import MEDIA_TYPE
from moleflow.service.responses.schemas import Problem

__all__ = [
    "BATCH",
    "COMMON",
    "DESCRIPTION",
    "LIVE",
    "METRICS",
    "NOT_READY",
    "PREDICT",
    "READY",
    "SCORES",
    "TASK",
    "TASKS",
    "problem",
]

DESCRIPTION = """
One endpoint that finds defects on any product it has learned: send an image to `POST /predict` and get the product,
the anomaly score with that product's threshold, the verdict, and a map that shows where the defect is.

Below `/v2` the service speaks the Open Inference Protocol as well, which is not described here.

Every error is a problem document (RFC 9457, `application/problem+json`) whose `detail` says what to do.
"""

_BINARY = {"type": "string", "format": "binary"}


def _as_field(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option as a form field, which may be omitted but cannot be null."""
    (given, *_) = schema.get("anyOf", [{}])
    return {name: value for name, value in (schema | given).items() if name != "anyOf" and value is not None}


def _options(model: type[PredictOptions]) -> dict[str, dict[str, Any]]:
    return model.model_json_schema()["properties"]


def _query(model: type[PredictOptions]) -> list[dict[str, Any]]:
    """The options as query parameters, documented here because the route parses the query itself."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if value is not None},
        }
        for name, schema in _options(model).items()
    ]


_TIMEOUT: dict[str, Any] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "milliseconds within which the answer must be ready, upload included; by default "
    "`MOLEFLOW_REQUEST_TIMEOUT_SECONDS`",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_MILLISECONDS},
}


def _form(file: dict[str, Any], model: type[PredictOptions]) -> dict[str, Any]:
    """A multipart form with the options as fields beside the field of images."""
    schema = {
        "type": "object",
        "properties": {FILE_FIELD: file} | {name: _as_field(schema) for name, schema in _options(model).items()},
        "required": [FILE_FIELD],
        "additionalProperties": False,
    }
    encoding = {FILE_FIELD: {"contentType": "image/png, image/jpeg, application/octet-stream"}}
    return {"multipart/form-data": {"schema": schema, "encoding": encoding}}


_HEADERS = {
    "MoLEFlow-Id": {"description": "id of the answer, for feedback; absent with JSON", "schema": {"type": "string"}},
    "MoLEFlow-Verdict": {"description": "good or anomalous; absent with JSON", "schema": {"type": "string"}},
    "MoLEFlow-Task": {"description": "product, percent-encoded; absent with JSON", "schema": {"type": "string"}},
    "MoLEFlow-Score": {"description": "anomaly score of the image; absent with JSON", "schema": {"type": "number"}},
    "MoLEFlow-P-Value": {"description": "calibrated score; absent with JSON", "schema": {"type": "number"}},
    "MoLEFlow-Threshold": {"description": "the product's threshold; absent with JSON", "schema": {"type": "number"}},
    "MoLEFlow-Anomalous": {"description": "true if anomalous; absent with JSON", "schema": {"type": "boolean"}},
}

_EXAMPLE = {
    "id": "6f1c0e0f5c8b4a6f9c8d7e6f5a4b3c2d",
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
    "inspected": None,
    "warnings": [],
    "checkpoint": {"name": "factory.safetensors", "digest": "9f86d081884c7d65…"},
    "timing_ms": {"decode": 11.2, "queue": 0.4, "inference": 48.7, "encode": 24.1},
}


def problem(description: str, **headers: str) -> dict[str, Any]:
    """The documentation of an error; ``headers`` are those of its response that hold a number, with their meaning."""
    named = {name: {"description": text, "schema": {"type": "integer"}} for name, text in headers.items()}
    documented: dict[str, Any] = {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
    return documented | ({"headers": {name.replace("_", "-"): text for name, text in named.items()}} if named else {})


COMMON: dict[int | str, dict[str, Any]] = {
    401: problem("the service has API keys (`MOLEFLOW_API_KEYS`), and the request has none of them"),
    414: problem("the query string is too long"),
    421: problem("the host name is not allowed"),
}
"""Errors that any route may return."""

NOT_READY = problem(
    "the service is starting or stopping, or the model fails or hangs; `detail` says which",
    Retry_After="seconds to wait",
)

PREDICT: dict[str, Any] = {
    "summary": "Inspect one image",
    "description": (
        "Send the image as the raw body or as the field `file` of a multipart form; options may be query parameters or "
        "form fields. Supported formats: PNG, JPEG, WebP, BMP, TIFF and GIF. Only the first frame is used, transparent "
        "areas are composited onto white, and the EXIF orientation is applied. 16-bit images are scaled by the value "
        "range that the product was trained with; `warnings` reports images that do not match it.\n\n"
        "`Accept` selects the response format: `application/json`, the heat map over the image as `image/png`, or the "
        "anomaly map alone as `application/x-npy` (float32, or float16 with `map=npy16`). The middle of the heat map's "
        "colour scale (red) is the threshold. Programs should use `map_size=model`: the map then has the resolution of "
        "the model and stays small for images of any size.\n\n"
        "`p_value` is the calibrated score: the probability that a good image of this product scores at least as high. "
        "A fraction `false_alarm_rate` of good images scores above the threshold, and the same fraction has a map that "
        "peaks above the pixel threshold; both are estimated on good images held out from training. An image that "
        "matches no learned product gets the verdict `unknown_product`, without score and map, unless `task` names the "
        "product; a request for the map alone then gets status 422."
    ),
    "tags": ["prediction"],
    "openapi_extra": {
        "parameters": [*_query(PredictOptions), _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {
                # /docs offers the first entry to try; for a form it would fill in every field.
                "application/octet-stream": {"schema": _BINARY},
                "image/*": {"schema": _BINARY},
                **_form(_BINARY, PredictOptions),
            },
        },
    },
    "responses": {
        200: {
            "description": "the prediction",
            "headers": _HEADERS,
            "content": {
                "application/json": {"example": _EXAMPLE},
                "image/png": {"schema": _BINARY},
                "application/x-npy": {"schema": _BINARY},
            },
        },
        400: problem(f"the header {TIMEOUT_HEADER} is invalid, or the body's chunks are too small"),
        403: problem("the request comes from a web page of another origin"),
        404: problem("no product of that name has been learned"),
        406: problem("Accept allows none of the response formats"),
        408: problem("the upload took too long"),
        413: problem("the image has too many bytes or pixels"),
        415: problem("the image cannot be decoded, or the content type is not supported"),
        422: problem("the body has no image, an option is invalid, or there is no map because the product is unknown"),
        429: problem(
            "the queue or the memory budget is full, or the client sends too many requests",
            Retry_After="seconds to wait",
        ),
        500: problem("the model failed on this image, or (type `damaged-product`) its product's expert is damaged"),
        503: NOT_READY,
        504: problem("the answer was not ready in time"),
    },
}

BATCH: dict[str, Any] = {
    "summary": "Inspect several images",
    "description": (
        "Send the images as fields `file` of one multipart form; options apply to all of them. The response has one "
        "entry per image, in the order of the form: the prediction, or the problem document that `POST /predict` would "
        "have responded with. It is sent image by image, so its first entries may be read before the last are made.\n\n"
        "The images of such requests are predicted a few at a time and never take more than half of the queue, so that "
        "single images need not wait for them."
    ),
    "tags": ["prediction"],
    "openapi_extra": {
        "parameters": [*_query(BatchOptions), _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": _form({"type": "array", "items": _BINARY, "minItems": 1}, BatchOptions),
        },
    },
    "responses": {
        200: {"description": "one answer per image"},
        **{status: PREDICT["responses"][status] for status in (400, 403, 404, 408, 429, 503, 504)},
        406: problem("Accept does not allow JSON"),
        413: problem("the images have too many bytes in all"),
        415: problem("the body is not a multipart form"),
        422: problem("the form has no image or too many, or an option is invalid"),
    },
}

TASKS: dict[str, Any] = {
    "summary": "List the learned products",
    "description": "The products in the order in which they were learned, each with its threshold and training data.",
    "tags": ["products"],
    "responses": {503: NOT_READY},
}

TASK: dict[str, Any] = {
    "summary": "Get one learned product",
    "tags": ["products"],
    "responses": {404: problem("no product of that name has been learned"), 503: NOT_READY},
}

SCORES: dict[str, Any] = {
    "summary": "Get the scores of good images",
    "description": (
        "A histogram of the scores that calibrate a product, of good images that its expert was not fitted to, and its "
        "threshold."
    ),
    "tags": ["products"],
    "responses": {404: problem("no product of that name has been learned"), 503: NOT_READY},
}

LIVE: dict[str, Any] = {
    "summary": "Liveness probe",
    "description": (
        "503 when the service cannot recover and must be restarted: the model cannot be loaded or loading hangs, a "
        "batch takes more than twice its timeout, the device is lost, or the inference thread has died."
    ),
    "tags": ["operation"],
    "responses": {503: problem("the service must be restarted; `detail` says why")},
}

READY: dict[str, Any] = {
    "summary": "Readiness probe",
    "description": (
        "503 while the model is loading or fails even on a blank image, while a batch exceeds its timeout or images "
        "cannot be decoded, and once the service has been told to stop. Send requests elsewhere meanwhile; the service "
        "may become ready again by itself. `damaged_products` lists products whose images cannot be scored; all other "
        "products are available. `last_reload` says whether the last change of the checkpoint file could be served."
    ),
    "tags": ["operation"],
    "responses": {503: NOT_READY},
}

METRICS: dict[str, Any] = {
    "summary": "Metrics for Prometheus",
    "tags": ["operation"],
    "responses": {200: {"description": "Prometheus text format", "content": {"text/plain": {}}}},
}
