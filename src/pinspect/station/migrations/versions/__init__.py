"""Revisions of the results tables, in the order of their numbers."""
