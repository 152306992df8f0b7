"""Learning products one after another, and measuring what was learned."""

__all__ = ["config", "progress"]
