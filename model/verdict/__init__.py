"""From log-likelihoods to a verdict: scores, maps, thresholds, regions, areas, and the results that are given out."""

__all__ = [
    "area",
    "calibration",
    "heatmap",
    "maps",
    "masking",
    "outlines",
    "records",
    "regions",
    "results",
    "scoring",
]
