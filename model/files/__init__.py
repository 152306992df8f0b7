"""Names, locks and writes of files: whole or not at all, and never the wrong one."""

__all__ = ["atomic", "file_lock", "file_names", "outputs", "regular_file"]
