"""The localizer as a baseline: the brightest pin of a DST picture, without training.

The localizer reads pictures of the dst folder alone. Only its threshold is chosen, on captures of the validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pinspect.captures.splits import TEST, VALIDATION
from pinspect.core import predictions
from pinspect.core.answers import DEFECTIVE, Answer, AnswerContract
from pinspect.core.drawings import ANY_DIRECTION, NAMED_DIRECTIONS
from pinspect.core.images import read_image
from pinspect.core.lines import COLUMNS, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.operating_point import LOCALIZER_THRESHOLD
from pinspect.core.prompts import answer_kind_of
from pinspect.core.question import preferred_source
from pinspect.core.rows import Row
from pinspect.examination.baseline import choose_threshold
from pinspect.nsoartc.dst_view import localize_pin
from pinspect.nsoartc.localizer import Localization
from pinspect.nsoartc.unit_space import UnitSpace

_STEEPNESS = 4.0


@dataclass(frozen=True)
class LocalizerBaseline:
    """The localizer with its thresholds.

    Attributes:
        contract: The answer contract.
        thresholds: Source -> threshold of the score.
        localizations: What the localizer reads off each validation and test capture's DST picture, by raw file.
    """

    contract: AnswerContract
    thresholds: Mapping[str, float]
    localizations: Mapping[str, Localization]

    @property
    def production_threshold(self) -> float:
        """Return the threshold for captures of the camera, or of the virtual line where there is none."""
        source = preferred_source(set(self.thresholds))
        return self.thresholds[source] if source else LOCALIZER_THRESHOLD

    def answer(self, rows: Sequence[Row], decoding: str) -> pd.DataFrame:
        """Return the predictions table of `rows`, under the name `LOCALIZER`.

        Args:
            rows: Rows of the chat dataset that ask production's question, each capture once.
            decoding: Production's decoding. The localizer decodes nothing; its answers stand beside production's.
        """
        return predictions.table([self._prediction(row, decoding) for row in rows])

    def _prediction(self, row: Row, decoding: str) -> dict[str, object]:
        localization = self.localizations[str(row["file"])]
        threshold = self.thresholds.get(str(row["source"]), LOCALIZER_THRESHOLD)
        answer = answer_of(localization, threshold, str(row["shape"]), str(row["view"]), self.contract)
        return predictions.prediction(
            row,
            self.contract.render(answer, answer_kind_of(str(row["kind"]))),
            self.contract,
            model=predictions.LOCALIZER,
            decoding=decoding,
            p_defective=1 / (1 + (threshold / localization.score) ** _STEEPNESS),
        )


def fit_localizer(dst: Path, raw: Path, contract: AnswerContract) -> LocalizerBaseline:
    """Read the DST pictures of validation and test captures; choose the threshold on the validation captures.

    Args:
        dst: The dst folder.
        raw: The raw folder, with the labels.
        contract: The answer contract.

    Raises:
        StageInputError: A table is missing.
        UnitSpaceError: A unit space is missing.
    """
    captures = read_manifest(raw / MANIFEST, (*COLUMNS, "judgement", "split"))
    lines = lines_of(captures)
    drawn = read_manifest(dst / MANIFEST, ("file", "dst_file", "error"))
    asked = captures[captures["split"].isin((VALIDATION, TEST))].merge(drawn[drawn["error"] == ""], on="file")
    spaces = {line: UnitSpace.load(dst / line.unit_space) for line in {lines[file] for file in asked["file"]}}
    localizations: dict[str, Localization] = {}
    for file, dst_file in zip(asked["file"], asked["dst_file"], strict=True):
        localizations[file] = localize_pin(np.asarray(read_image(dst / dst_file)), spaces[lines[file]])
    known = asked[asked["split"] == VALIDATION]
    scores = known["file"].map({file: each.score for file, each in localizations.items()}).astype(float)
    thresholds = {
        str(source): choose_threshold(scores[rows.index].to_numpy(), (rows["judgement"] == DEFECTIVE).to_numpy())
        for source, rows in known.groupby("source")
    }
    return LocalizerBaseline(contract, thresholds, localizations)


def answer_of(localization: Localization, threshold: float, shape: str, view: str, contract: AnswerContract) -> Answer:
    """Return what the localizer answers about a capture.

    The mode is the one that leans in the direction of the localization. Where the picture shows no direction, or the
    line has no such mode, it is the first mode without a direction: the localizer does not distinguish such modes.

    Args:
        localization: What the localizer reads off the capture's DST picture.
        threshold: A capture is defective if the score is at least this threshold.
        shape: Pin shape.
        view: View that the answer names.
        contract: The answer contract.
    """
    if localization.score < threshold:
        return contract.passed(shape, view)
    direction = NAMED_DIRECTIONS.get(localization.direction)
    modes = [mode for mode, drawing in contract.drawings.items() if drawing.direction == direction]
    plain = [mode for mode, drawing in contract.drawings.items() if drawing.direction == ANY_DIRECTION]
    return contract.defective(shape, view, (modes + plain + list(contract.defect_modes))[0], localization.address)
