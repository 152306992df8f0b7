"""The network and what it says about an image: no HTTP, no command line, no training."""

__all__ = ["config", "detector", "errors", "names"]
