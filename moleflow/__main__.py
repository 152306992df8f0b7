"""The `moleflow` command, also as `python -m moleflow`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; an interrupt ends it without a traceback, also while it is still being imported."""
    try:
        from moleflow.model.runtime.memory import keep_freed_memory
        from moleflow.model.runtime.threads import prepare_threads

        prepare_threads()  # before NumPy is imported
        keep_freed_memory()
        from moleflow.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
