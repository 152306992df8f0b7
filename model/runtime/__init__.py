"""How work runs on this machine: device, precision, threads, memory, and what its failures mean."""

__all__ = ["device", "faults", "lru", "memory", "onednn", "parallel", "soundness", "threads"]
