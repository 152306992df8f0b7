"""Device, precision, threads, memory, fused operators, OpenVINO, and the classification of failures."""

__all__ = [
    "conversion",
    "device",
    "faults",
    "fused",
    "graphs",
    "kernels",
    "lru",
    "memory",
    "openvino_import",
    "parallel",
    "soundness",
    "templates",
    "threads",
    "user_cache",
]
