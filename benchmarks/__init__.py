"""Measurements of MoLE-Flow. ``python -m benchmarks`` lists them; ``README.md`` says what each package holds."""
