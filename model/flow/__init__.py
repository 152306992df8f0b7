"""The normalizing flow: the shared base, the experts, and the merged form for prediction."""

__all__ = ["blocks", "context", "expert", "likelihood", "lora", "merged", "plain", "stacked", "subnet"]
