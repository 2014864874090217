"""Traceability: which connector a capture shows, by its serial number and its lot."""

from __future__ import annotations

import re

from pinspect.station.results_tables import LONGEST_TRACE

SERIAL, LOT = "serial", "lot"
TRACE = (SERIAL, LOT)
# What a client may send: no control characters, ends of lines and overrides of the direction of writing.
SENT = r"^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*$"


def trace_of_name(file: str, names: str) -> dict[str, str | None]:
    """Return serial number and lot that a file name reveals.

    Args:
        file: File name; of a watched folder, the path within the folder.
        names: Regular expression with the groups `serial` and `lot`, or one of them; empty for none.

    Returns:
        `serial` and `lot`; None if the name does not reveal it.
    """
    match = re.search(names, file) if names else None
    groups = match.groupdict() if match else {}
    return {name: (groups.get(name) or "")[:LONGEST_TRACE] or None for name in TRACE}


def trace_problem(value: str) -> str | None:
    """Return what is wrong with a serial number or a lot that a client sent; None if it can be used."""
    if len(value) > LONGEST_TRACE or not re.fullmatch(SENT, value):
        return f"expected at most {LONGEST_TRACE} printable characters"
    return None
