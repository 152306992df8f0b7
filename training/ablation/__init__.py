"""The ablation studies: definitions, runner and result tables."""

__all__ = ["runner", "studies", "table"]
