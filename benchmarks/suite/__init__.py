"""``make bench``: runs the short measurements and writes ``RESULTS.md``."""
