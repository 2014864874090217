"""Captures: labels, names, the inbox, splits and the raw folder (stage raw)."""
