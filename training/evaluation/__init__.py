"""What a checkpoint achieves on test images, in the field's metrics."""

__all__ = ["aupro", "cached", "curves", "evaluate", "figures", "forgetting", "metrics", "records", "seeds", "states"]
