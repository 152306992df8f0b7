"""From patch embeddings to log-likelihoods: the shared base, the experts of the tasks, and their fast form."""

__all__ = ["blocks", "context", "expert", "likelihood", "lora", "merged", "reference", "subnet"]
