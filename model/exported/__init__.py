"""A checkpoint exported as a folder of compiled-graph files, and its detector. Needs OpenVINO, and no PyTorch."""

__all__ = ["detector", "folder", "manifest"]
