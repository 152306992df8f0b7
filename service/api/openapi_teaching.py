"""The OpenAPI documentation of the routes for teaching."""

from typing import Any

from moleflow.service.api.form import FILE_FIELD
from moleflow.service.api.openapi import NOT_READY, problem

__all__ = ["CANCEL", "EVENTS", "FORGET", "FORGET_ALL", "IMAGE", "IMAGES", "JOB", "JOBS", "TEACH", "TRAIN"]

_BINARY = {"type": "string", "format": "binary"}

_ALWAYS = {
    403: problem("the client may not teach, or the request comes from a web page of another origin"),
    404: problem("the service is not taught (`MOLEFLOW_TEACHING`), or has no such image"),
    422: problem("no product can have this name"),
    507: problem("the folder for teaching is full, or cannot be read or written"),
}

TEACH: dict[str, Any] = {
    "summary": "Add good images of a product",
    "description": (
        "Keeps good images from which `POST /tasks/{name}:train` learns the product: fields `file` of a multipart "
        "form, or the body itself. Each file is an image, or a ZIP archive with images at its top. Every image is "
        "decoded as for a prediction. A file that cannot be used has a problem document; the others are kept. The same "
        "content is kept once: a duplicate has the `id` of the image that it repeats."
    ),
    "tags": ["teaching"],
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": _BINARY},
                "image/*": {"schema": _BINARY},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {FILE_FIELD: {"type": "array", "items": _BINARY, "minItems": 1}},
                        "required": [FILE_FIELD],
                        "additionalProperties": False,
                    }
                },
            },
        }
    },
    "responses": {
        200: {"description": "what became of each file"},
        **_ALWAYS,
        408: problem("the upload took too long"),
        409: problem("this service cannot learn: it serves an exported folder, or has no PyTorch"),
        413: problem("the files have too many bytes in all"),
        415: problem("the content type is not supported"),
        422: problem("no product can have this name; or the form has no file, too many, or other fields"),
        429: problem("the memory budget is full", Retry_After="seconds to wait"),
        503: NOT_READY,
    },
}

IMAGES: dict[str, Any] = {
    "summary": "List the good images of a product",
    "description": "Those that were uploaded, then those that feedback called good, which join them.",
    "tags": ["teaching"],
    "responses": _ALWAYS,
}

FORGET_ALL: dict[str, Any] = {
    "summary": "Delete the good images of a product",
    "description": "All that were uploaded; those of feedback stay. The product itself is not changed.",
    "tags": ["teaching"],
    "responses": {200: {"description": "what is left"}, **_ALWAYS},
}

IMAGE: dict[str, Any] = {
    "summary": "Get a good image",
    "tags": ["teaching"],
    "responses": {200: {"description": "the file as it was uploaded", "content": {"image/*": {}}}, **_ALWAYS},
}

FORGET: dict[str, Any] = {
    "summary": "Delete a good image",
    "tags": ["teaching"],
    "responses": {200: {"description": "what is left"}, **_ALWAYS},
}

TRAIN: dict[str, Any] = {
    "summary": "Learn a product from its good images",
    "description": (
        "Starts a job in a process of its own, at the lowest priority; one runs at a time, others wait. What it learns "
        "is written to the checkpoint file and served without losing a request. A product that is learned already is "
        "learned again in its place; all others stay bit-identical. The first product, whose base the others need, "
        "can be learned again only while it is the only one."
    ),
    "tags": ["teaching"],
    "responses": {
        202: {"description": "the job, waiting", "headers": {"Location": {"schema": {"type": "string"}}}},
        **_ALWAYS,
        409: problem(
            "the product has no good images, or a job already; it was learned first, or is hidden; or this service "
            "cannot learn"
        ),
        422: problem("no product can have this name, or a query parameter is invalid"),
    },
}

JOBS: dict[str, Any] = {
    "summary": "List the jobs, newest first",
    "description": "Jobs outlive the service. The last 100 that have ended are remembered.",
    "tags": ["teaching"],
    "responses": {status: text for status, text in _ALWAYS.items() if status != 422},
}

_OF_A_JOB = {**_ALWAYS, 404: problem("there is no such job, or the service is not taught (`MOLEFLOW_TEACHING`)")}
_OF_A_JOB.pop(422)

JOB: dict[str, Any] = {"summary": "Get a job", "tags": ["teaching"], "responses": _OF_A_JOB}

EVENTS: dict[str, Any] = {
    "summary": "Follow a job",
    "description": (
        "Server-sent events (`text/event-stream`): `job` with the job as JSON at every change, and `end` with it as "
        "the last one."
    ),
    "tags": ["teaching"],
    "responses": {
        200: {"description": "the events", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **_OF_A_JOB,
    },
}

CANCEL: dict[str, Any] = {
    "summary": "Cancel a job",
    "description": "Its process ends, and the checkpoint stays as it was. The same images continue it later.",
    "tags": ["teaching"],
    "responses": {200: {"description": "the job"}, **_OF_A_JOB, 409: problem("the job has ended")},
}
