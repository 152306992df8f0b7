"""Building a JSON response from what the model found."""

import math

from moleflow.model.verdict.area import rows_of
from moleflow.model.verdict.records import MAX_CANDIDATES, CheckpointInfo
from moleflow.model.verdict.results import Finding, Prediction
from moleflow.service.responses.schemas import AnomalyMap, ImageSize, PredictionResponse, Routing, Timing

__all__ = ["build_response"]


def build_response(
    finding: Finding,
    *,
    checkpoint: CheckpointInfo,
    width: int,
    height: int,
    timing: Timing,
    anomaly_map: AnomalyMap | None = None,
    forced: bool = False,
    identifier: str | None = None,
) -> PredictionResponse:
    """Build the API response for one finding.

    ``width`` and ``height`` are those of the upright image, in pixels; ``forced`` says that the caller named the
    product, ``identifier`` that feedback may be given. Raises ``pydantic.ValidationError`` when a number is not finite.
    """
    scored = finding if isinstance(finding, Prediction) else None
    names = ("task", "score", "p_value", "threshold", "is_anomalous", "pixel_threshold")
    return PredictionResponse(
        id=identifier,
        verdict=finding.verdict,
        routing=Routing(
            distance=finding.product.distance,
            margin=None if math.isinf(finding.margin) else finding.margin,
            candidates=finding.candidates[:MAX_CANDIDATES],
            novelty_score=finding.novelty_score,
            forced=forced,
        ),
        **{name: getattr(scored, name, None) for name in names},
        false_alarm_rate=finding.false_alarm_rate,
        regions=scored.regions(height, width) if scored else (),
        anomaly_map=anomaly_map,
        inspected=None if scored is None or scored.inspected is None else rows_of(scored.inspected),
        warnings=finding.warnings,
        image=ImageSize(width=width, height=height),
        checkpoint=checkpoint,
        timing_ms=timing,
    )
