"""The virtual line: a parametric renderer of connectors.

Virtual captures top up the training before a real line runs, and the base learns from random set-ups of the line.
"""

from pinspect.virtual_line.line import VirtualCapture, render_line
from pinspect.virtual_line.pins import (
    DEFECTS,
    LineSetup,
    Pins,
    bend,
    lean_clear_of_neighbors,
    random_setup,
    remove,
    retract,
    tolerated_pins,
)
from pinspect.virtual_line.renderer import Rendered, encode_jpeg, render

__all__ = [
    "DEFECTS",
    "LineSetup",
    "Pins",
    "Rendered",
    "VirtualCapture",
    "bend",
    "encode_jpeg",
    "lean_clear_of_neighbors",
    "random_setup",
    "remove",
    "render",
    "render_line",
    "retract",
    "tolerated_pins",
]
