"""The options of ``POST /predict``, given as query parameters or as form fields beside the image."""

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moleflow.service.responses.render import MapChoice, MapSize

__all__ = ["BatchOptions", "PredictOptions", "combine_options"]

Place = Literal["query", "form"]


class PredictOptions(BaseModel):
    """Options of ``POST /predict``, the same in the query and the form."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(None, description="name of the product; skips routing", examples=["bottle"])
    false_alarm_rate: float | None = Field(
        None, gt=0, lt=1, description="fraction of good images that may be called anomalous; sets the thresholds"
    )
    map: MapChoice = Field(
        "png",
        description="encoding of the anomaly map in the JSON: none, 16-bit PNG, or a NumPy file of float32 (npy) or "
        "float16 (npy16, half the size); npy16 also applies to Accept: application/x-npy",
    )
    map_size: MapSize = Field(
        "image",
        description="size of the map: that of the image, or of the model's input, which loses nothing and stays small "
        "for images of any size",
    )


class BatchOptions(PredictOptions):
    """Options of ``POST /predict/batch``: the same, but without a map by default."""

    map: MapChoice = Field(
        "none",
        description="encoding of the anomaly maps in the JSON: none, 16-bit PNG, or a NumPy file of float32 (npy) or "
        "float16 (npy16, half the size). With maps at the size of the image, images are predicted one at a time; "
        "map_size=model avoids that",
    )


Options = TypeVar("Options", bound=PredictOptions)


def combine_options(query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]], model: type[Options]) -> Options:
    """The options that a request gives, wherever it gives them.

    Raises ``RequestValidationError`` for one that is unknown, has a value that is not valid, is given twice in one
    place, or has one value in the query and another in the form.
    """
    values: dict[str, str] = {}
    places: dict[str, Place] = {}
    problems: list[dict[str, Any]] = []
    given: list[tuple[Place, str, str]] = [("query", *item) for item in query]
    given += [("form", *item) for item in form]
    for place, name, value in given:
        if places.get(name) == place:
            problems.append(_problem(place, name, value, "should be given once"))
        elif values.setdefault(name, value) != value:
            problems.append(
                _problem(place, name, value, f"should be {values[name]!r}, as in the query, or be left out")
            )
        places.setdefault(name, place)
    if problems:
        raise RequestValidationError(problems)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(
            [{**problem, "loc": (places[str(problem["loc"][0])], *problem["loc"])} for problem in error.errors()]
        ) from error


def _problem(place: Place, name: str, value: str, reason: str) -> dict[str, Any]:
    """In the shape of pydantic's own."""
    return {"type": "contradiction", "loc": (place, name), "msg": reason, "input": value}
