"""File names, locks, atomic writes and checked outputs."""

__all__ = ["atomic", "exclusive", "file_lock", "file_names", "outputs", "regular_file", "sizes"]
