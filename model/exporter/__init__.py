"""Exporting a checkpoint as a folder of graphs, which ``moleflow.model.exported`` reads. Needs PyTorch."""

__all__ = ["write"]
