"""From log-likelihoods to a verdict: scores, maps, thresholds, regions, and the results that are given out."""

__all__ = ["calibration", "heatmap", "maps", "records", "regions", "results", "scoring"]
