"""File names, locks, atomic writes and checked outputs."""

__all__ = ["atomic", "file_lock", "file_names", "outputs", "regular_file"]
