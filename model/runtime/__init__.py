"""Device, precision, threads, memory, fused operators, and the classification of failures."""

__all__ = ["device", "faults", "fused", "graphs", "kernels", "lru", "memory", "parallel", "soundness", "threads"]
