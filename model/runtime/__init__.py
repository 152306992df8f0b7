"""Device, precision, threads, memory, fused operators, and the classification of failures."""

__all__ = ["device", "faults", "graphs", "kernels", "lru", "memory", "onednn", "parallel", "soundness", "threads"]
