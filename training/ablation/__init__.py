"""The rows of the ablation study, trained and compared."""

__all__ = ["runner", "studies", "table"]
