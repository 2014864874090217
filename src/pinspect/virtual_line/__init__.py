"""The virtual line: a parametric renderer of connectors.

Virtual captures top up the training before a real line runs, and the base learns from random set-ups of the line.
"""

from pinspect.virtual_line.line import DRAWN_SHAPES, VirtualCapture, default_setup, render_line
from pinspect.virtual_line.pins import Pins, change_pin, lean_towards, tolerated_pins
from pinspect.virtual_line.renderer import ForeignObject, Rendered, encode_jpeg, render
from pinspect.virtual_line.setups import Lamp, LineSetup, random_setup, setup_like
from pinspect.virtual_line.unlabelled import KINDS, render_unlabelled

__all__ = [
    "DRAWN_SHAPES",
    "KINDS",
    "ForeignObject",
    "Lamp",
    "LineSetup",
    "Pins",
    "Rendered",
    "VirtualCapture",
    "change_pin",
    "default_setup",
    "encode_jpeg",
    "lean_towards",
    "random_setup",
    "render",
    "render_line",
    "render_unlabelled",
    "setup_like",
    "tolerated_pins",
]
