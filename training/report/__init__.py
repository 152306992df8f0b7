"""Evaluations as tables, charts and an HTML page."""

__all__ = ["html", "markdown", "tables"]
