"""Scores, plots and the report, without a model (stage evaluate)."""
