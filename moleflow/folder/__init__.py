"""Predictions for whole folders as rows of a file: ``moleflow predict --output``."""
