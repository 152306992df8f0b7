"""`python -m moleflow`, the same as the `moleflow` command."""

from moleflow.cli import main

if __name__ == "__main__":
    main()
