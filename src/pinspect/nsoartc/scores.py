"""The rows of scores.csv: the pins' scores of each inspected capture, and the features of its highest pin."""

from __future__ import annotations

import numpy as np

from pinspect.core.layout import Layout
from pinspect.nsoartc.pin_scores import MODE_FEATURES, mode_features
from pinspect.nsoartc.unit_space import UnitSpace

SCORES = "scores.csv"
SCORE = "score"
HIGHEST = "highest"


def score_row(measures: np.ndarray, unit_space: UnitSpace) -> dict[str, float | str]:
    """Compute a capture's row of scores.csv, from which the baseline learns.

    A pin's score is its Mahalanobis distance as a share of the distance that few passed pins reach, so that scores of
    different shapes and lines can be compared.

    Args:
        measures: float32 (pins, 6), as `measure_pins` returns them.
        unit_space: The unit space of the capture's line.

    Returns:
        The score of each pin by address, the highest score as `score` and its address as `highest`, and the
        `MODE_FEATURES` of that pin.
    """
    scores = unit_space.pin_distances(measures) / unit_space.pin_white
    highest = int(scores.argmax())
    addresses = unit_space.layout.addresses
    features = mode_features(measures, unit_space.templates, highest)
    return (
        {str(address): round(float(score), 4) for address, score in zip(addresses, scores, strict=True)}
        | {SCORE: round(float(scores[highest]), 4), HIGHEST: str(addresses[highest])}
        | {name: round(float(value), 5) for name, value in zip(MODE_FEATURES, features, strict=True)}
    )


def score_columns(layout: Layout) -> tuple[str, ...]:
    """Return the columns of scores.csv."""
    return ("file", *map(str, layout.addresses), SCORE, HIGHEST, *MODE_FEATURES)
