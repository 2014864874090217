"""The chat dataset and the answer checks: stages chat and check."""
