"""What a client may ask for beside the image: in the query, or as fields of the form that the image comes in."""

from collections.abc import Iterable
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moleflow.service.responses.render import MapChoice, MapSize

__all__ = ["PredictOptions", "combine_options"]

Place = Literal["query", "form"]


class PredictOptions(BaseModel):
    """Options of ``POST /predict``, the same in the query and in the form."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = Field(None, description="name of the product; skips routing", examples=["bottle"])
    false_alarm_rate: float | None = Field(
        None, gt=0, lt=1, description="share of good images that may be called anomalous; moves the thresholds"
    )
    map: MapChoice = Field(
        "png",
        description="how the anomaly map travels inside the JSON: not at all, as 16-bit PNG, or as a NumPy file of "
        "float32 (npy) or float16 (npy16, half as large); with Accept: application/x-npy, npy16 makes that float16 too",
    )
    map_size: MapSize = Field(
        "image",
        description="size of the map: the image's, or that of the model's input. The latter holds all that the model "
        "found and stays small however large the image is: the choice for machines",
    )


def combine_options(query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]] = ()) -> PredictOptions:
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
        return PredictOptions.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(
            [{**problem, "loc": (places[str(problem["loc"][0])], *problem["loc"])} for problem in error.errors()]
        ) from error


def _problem(place: Place, name: str, value: str, reason: str) -> dict[str, Any]:
    """In the shape of pydantic's own."""
    return {"type": "contradiction", "loc": (place, name), "msg": reason, "input": value}
