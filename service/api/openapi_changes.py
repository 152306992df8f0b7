"""The OpenAPI documentation of the routes that change something: products, what is served, and feedback."""

from typing import Any

from moleflow.model.verdict.area import Outlines
from moleflow.service.api.openapi import NOT_READY, problem

__all__ = ["CHANGE", "CLEAR_AREA", "FEEDBACK", "RELOAD", "REMOVE", "SET_AREA"]

_JSON_BODY = {
    400: problem("the body's chunks are too small"),
    408: problem("the body took too long"),
    413: problem("the body is too large"),
    422: problem("the body is invalid"),
    429: problem("the memory budget is full", Retry_After="seconds to wait"),
}


def _takes_json(example: dict[str, str], required: tuple[str, ...] = (), **fields: dict[str, Any]) -> dict[str, Any]:
    """The documentation of a JSON object as the body, which the route reads itself."""
    schema: dict[str, Any] = {"type": "object", "properties": fields, "additionalProperties": False}
    if required:  # an empty list is not valid
        schema["required"] = list(required)
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


FEEDBACK: dict[str, Any] = {
    "summary": "Tell the true verdict",
    "description": (
        "Keeps the image of a recent answer in the folder that `MOLEFLOW_FEEDBACK` names, as `TASK/train/good/ID.png` "
        "or `TASK/test/defect/ID.png`. `moleflow train`, `recalibrate` and `evaluate` read that folder. Another "
        "feedback for the same answer replaces the first."
    ),
    "tags": ["prediction"],
    "responses": {
        **_JSON_BODY,
        403: problem("the request comes from a web page of another origin"),
        404: problem("no recent answer has this id, no such product was learned, or no feedback is kept"),
        503: NOT_READY,
        507: problem("the folder for feedback is full or cannot be written"),
    },
    "openapi_extra": _takes_json(
        {"verdict": "good"},
        required=("verdict",),
        verdict={"type": "string", "enum": ["good", "defect"]},
        task={"type": "string"},
    ),
}

_NOT_ALLOWED = problem("the client may not administer the service (`MOLEFLOW_ADMIN`)")

RELOAD: dict[str, Any] = {
    "summary": "Load the checkpoint file again",
    "description": (
        "Opens, verifies and warms up the current content of the checkpoint file beside what is served, which it then "
        "replaces between two batches. No request is lost. If it cannot be loaded, what was loaded before stays. A "
        "changed file is also noticed without this request."
    ),
    "tags": ["administration"],
    "responses": {
        200: {"description": "what is served now"},
        403: _NOT_ALLOWED,
        409: problem("the file cannot be loaded; what was loaded before is still served"),
        503: NOT_READY,
    },
}

_CHANGED = {
    200: {"description": "what is served now"},
    403: _NOT_ALLOWED,
    404: problem("no product of that name has been learned"),
    409: problem(
        "the first product can only be hidden, the new name is in use, no product would be left, another process "
        "writes to the checkpoint, or it cannot be written or read"
    ),
    503: NOT_READY,
}

REMOVE: dict[str, Any] = {
    "summary": "Remove or hide a product",
    "description": (
        "Removes the product from the checkpoint file, and serves the rest. The other products stay as they are, bit "
        "for bit. With `hide=true` it stays in the file without a part in prediction; the first one, whose base the "
        "others need, can only be hidden."
    ),
    "tags": ["administration"],
    "responses": {**_CHANGED, 422: problem("a query parameter is invalid")},
}

CHANGE: dict[str, Any] = {
    "summary": "Rename, hide or show a product",
    "tags": ["administration"],
    "responses": {**_CHANGED, **_JSON_BODY},
    "openapi_extra": _takes_json({"name": "bottle"}, name={"type": "string"}, hidden={"type": "boolean"}),
}

_AREA = {
    **_CHANGED,
    409: problem(
        "the area has too few patches, or all of them, another process writes to the checkpoint, or it cannot be "
        "written or read"
    ),
}

_TRIANGLE = {"ignore": [[[0.0, 0.0], [0.2, 0.0], [0.0, 0.3]]]}

SET_AREA: dict[str, Any] = {
    "summary": "Inspect a part of a product's images",
    "description": (
        "As JSON, polygons to `inspect` (all, if there are none) and to `ignore`: lists of corners [x, y] as fractions "
        "of the image's width and height. As an image, a mask of the same framing: bright is inspected, dark is not. "
        "Nothing outside raises scores, maps or regions. The area is drawn anew, and thresholds are those from before "
        "the product had one, which good images then exceed at most as often; `moleflow area --good` fits them."
    ),
    "tags": ["administration"],
    "responses": {**_AREA, **_JSON_BODY, 415: problem("the body is neither JSON nor an image that can be read")},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": Outlines.model_json_schema(), "example": _TRIANGLE},
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}

CLEAR_AREA: dict[str, Any] = {
    "summary": "Inspect all of a product's images that was learned",
    "description": "Thresholds are those from before the product had an area.",
    "tags": ["administration"],
    "responses": _AREA,
}
