"""The baseline that needs no model: NSOARTC pin scores, one threshold, and a small classifier for the defect mode.

Every evaluation report compares the model with it. If the VLM does not beat this baseline, use the baseline. The
threshold comes from captures of the train and validation splits, the classifier from the train split; the test split is
never used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pinspect.captures.splits import TRAIN, VALIDATION
from pinspect.core import predictions
from pinspect.core.answers import DEFECTIVE, Answer, AnswerContract
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.core.prompts import answer_kind_of
from pinspect.core.rows import Row
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.pin_scores import MODE_FEATURES, measure_pins
from pinspect.nsoartc.scores import HIGHEST, SCORE, SCORES, score_columns, score_row
from pinspect.nsoartc.unit_space import UnitSpace

UNTRAINED_THRESHOLD = 2.0  # used without labeled defects: twice a score that few passed pins reach
_STEEPNESS = 4.0
_RAW_COLUMNS = ("file", "source", "shape", "judgement", "defect_mode", "defect_position", "split")


@dataclass(frozen=True)
class Finding:
    """The baseline's answer about one capture.

    Attributes:
        answer: The answer.
        score: Score of the highest pin.
        p_defective: 0..1, 0.5 at the threshold. It orders captures as the score does and is not calibrated.
    """

    answer: Answer
    score: float
    p_defective: float


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        contract: The answer contract.
        thresholds: Source -> threshold of the score.
        modes: Classifier of defect modes over `MODE_FEATURES`; None where the training captures show fewer than two
            modes. Every defect then gets the mode `only_mode`.
        only_mode: See `modes`.
        scores: Pin scores of every capture, with source and shape, indexed by raw file.
    """

    contract: AnswerContract
    thresholds: Mapping[str, float]
    modes: Pipeline | None
    only_mode: str
    scores: pd.DataFrame

    def inspect(self, file: str, view: str = "DST") -> Finding:
        """Return the finding for a capture of the dst folder.

        Args:
            file: File of the capture in the raw folder.
            view: View that the answer names.

        Raises:
            StageInputError: The dst stage has set the capture aside or does not know it.
        """
        if file not in self.scores.index:
            raise StageInputError(
                f"{file}: no pin scores in data/dst/{SCORES}; see data/dst/manifest.csv for the reason"
            )
        (values,) = self.scores.loc[[file]].to_numpy(object)
        row = dict(zip(self.scores.columns, values, strict=True))
        return self._find(row, row["shape"], row["source"], view)

    def inspect_image(self, image: np.ndarray, unit_space: UnitSpace, maximum_shift: float, source: str) -> Finding:
        """Return the finding for a capture that is in no folder.

        Args:
            image: uint8 (H, W, 3), RGB.
            unit_space: Unit space of the capture's shape.
            maximum_shift: Largest shift that the alignment accepts, in px.
            source: `camera` or `virtual`, which selects the threshold.

        Raises:
            AlignmentError: The capture cannot be aligned to the unit space.
        """
        measures = measure_pins(align_capture(image, unit_space, maximum_shift).evened, unit_space.templates)
        return self._find(score_row(measures, unit_space), unit_space.shape, source, "DST")

    def answer(self, rows: Sequence[Row], decoding: str) -> pd.DataFrame:
        """Return the predictions table of `rows`, under the name `BASELINE`.

        Args:
            rows: Rows of the chat dataset that ask production's question, each capture once.
            decoding: Production's decoding. The baseline decodes nothing; its answers stand beside production's.
        """
        answers = []
        for row in rows:
            finding = self.inspect(str(row["file"]), str(row["view"]))
            answer = self.contract.render(finding.answer, answer_kind_of(str(row["kind"])))
            answers.append(
                predictions.prediction(
                    row,
                    answer,
                    self.contract,
                    model=predictions.BASELINE,
                    decoding=decoding,
                    p_defective=finding.p_defective,
                )
            )
        return predictions.table(answers)

    def _find(self, row: Mapping[str, Any], shape: str, source: str, view: str) -> Finding:
        threshold = self.thresholds.get(source, UNTRAINED_THRESHOLD)
        score = float(row[SCORE])
        p_defective = 1 / (1 + (threshold / max(score, 1e-6)) ** _STEEPNESS)
        if score < threshold:
            return Finding(self.contract.passed(shape, view), score, p_defective)
        mode = self.only_mode
        if self.modes is not None:
            mode = str(self.modes.predict(np.array([[float(row[name]) for name in MODE_FEATURES]]))[0])
        address = self.contract.layout.address(str(row[HIGHEST]))
        return Finding(self.contract.defective(shape, view, mode, address), score, p_defective)


def fit_baseline(dst: Path, raw: Path, contract: AnswerContract) -> Baseline:
    """Fit the baseline on pin scores and labels.

    Args:
        dst: The dst folder, with the pin scores.
        raw: The raw folder, with the labels.
        contract: The answer contract.

    Raises:
        StageInputError: A table is missing.
    """
    scores = read_manifest(dst / SCORES, score_columns(contract.layout))
    numbers = [column for column in scores.columns if column not in ("file", HIGHEST)]
    scores = scores.astype(dict.fromkeys(numbers, float))
    table = scores.merge(read_manifest(raw / "manifest.csv", _RAW_COLUMNS), on="file")
    known = table[table["split"].isin((TRAIN, VALIDATION))]
    thresholds = {
        str(source): choose_threshold(rows[SCORE].to_numpy(), (rows["judgement"] == DEFECTIVE).to_numpy())
        for source, rows in known.groupby("source")
    }
    train = known[
        (known["split"] == TRAIN) & (known["judgement"] == DEFECTIVE) & (known["defect_position"] == known[HIGHEST])
    ]
    classes = sorted(train["defect_mode"].unique())
    return Baseline(
        contract=contract,
        thresholds=thresholds,
        modes=_mode_classifier(train) if len(classes) > 1 else None,
        only_mode=classes[0] if classes else contract.defect_modes[0],
        scores=table.set_index("file")[["source", "shape", *scores.columns.drop("file")]],
    )


def choose_threshold(scores: np.ndarray, defective: np.ndarray) -> float:
    """Return the threshold with the smallest sum of escape rate and overkill rate.

    Of several such thresholds, the one in the widest gap between scores (on a log scale) is taken.

    Args:
        scores: float (n,), above 0.
        defective: bool (n,). Without captures of both judgements the result is `UNTRAINED_THRESHOLD`.
    """
    if defective.all() or not defective.any():
        return UNTRAINED_THRESHOLD
    ordered = np.log(np.unique(np.maximum(scores, 1e-6)))
    candidates, gaps = (ordered[1:] + ordered[:-1]) / 2, np.diff(ordered)
    if not len(candidates):
        return UNTRAINED_THRESHOLD
    called = scores[:, None] >= np.exp(candidates)
    errors = (~called[defective]).mean(axis=0) + called[~defective].mean(axis=0)
    best = np.isclose(errors, errors.min())
    return float(np.exp(candidates[best][gaps[best].argmax()]))


def _mode_classifier(train: pd.DataFrame) -> Pipeline:
    return make_pipeline(StandardScaler(), SVC(C=10)).fit(train[list(MODE_FEATURES)].to_numpy(), train["defect_mode"])
