"""The score of a registered version on a folder of labeled captures: figures, confusions and misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE, VERDICT, AnswerContract
from pinspect.core.predictions import address_probabilities
from pinspect.core.statistics import wilson
from pinspect.evaluation import metrics
from pinspect.evaluation.cases import SEVERITY, Lines, compared_lines, measured, worst_outcome
from pinspect.evaluation.metrics import Estimate
from pinspect.evaluation.settings import ReportSettings

NOT_INSPECTED = "not inspected"
_SUSPICIOUS = 3  # pins that are named with a miss, if their probability is at least
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Miss:
    """A capture that was answered wrong.

    Attributes:
        file: The name of the capture.
        outcome: One of `cases.SEVERITY`, such as `escape`.
        image_type: The expected image type.
        expected: Judgement, defect mode and defect position of the label.
        answered: The same of the answer; empty texts for an answer that breaks the contract.
        expected_lines: Lines of the expected answer.
        lines: Lines of the answer, each with whether it differs from the expected line.
        p_defective: P(defective), 0..1; None where not measured.
        threshold: The capture is judged defective if `p_defective` is at least this threshold; None where not measured.
        addresses: P(address) of every pin in the order of the layout, if the capture is defective; empty where not
            measured.
        suspicious_pins: The pins with the highest P(address), of 1 % at least, highest first: address -> probability.
    """

    file: str
    outcome: str
    image_type: str
    expected: Mapping[str, str]
    answered: Mapping[str, str]
    expected_lines: tuple[str, ...]
    lines: Lines
    p_defective: float | None
    threshold: float | None
    addresses: tuple[float, ...]
    suspicious_pins: Mapping[str, float]


@dataclass(frozen=True)
class FolderScore:
    """A version's answers to the captures of a folder.

    Attributes:
        model: Name of the registered model.
        version: Number of the version.
        view: The view that the version inspects, `RAW` or `DST`.
        folder: The folder.
        digest: Digest of its photographs and labels.
        answered: Predictions table, one row per capture; `file` is the name of the capture.
        not_inspected: Capture -> why the version could not inspect it.
        trained_on: The captures that the project trains on.
        remarks: Remarks on the captures, one line each.
        contract: The answer contract.
        settings: Section `report` of `settings.yaml`.
        pictures: Capture -> bytes of a picture of it: misses as the model sees them, captures that were not inspected
            as they are.
    """

    model: str
    version: str
    view: str
    folder: str
    digest: str
    answered: pd.DataFrame
    not_inspected: Mapping[str, str]
    trained_on: tuple[str, ...]
    remarks: tuple[str, ...]
    contract: AnswerContract
    settings: ReportSettings
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def inspected(self) -> pd.DataFrame:
        """The rows of the captures that were inspected; only they are scored."""
        return self.answered[~self.answered["file"].isin(list(self.not_inspected))]

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        """Every score on the inspected captures, and the share of inspected captures."""
        settings, n, inspected = self.settings, len(self.answered), len(self.inspected)
        scores = metrics.score(
            self.inspected,
            confidence=settings.confidence,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )
        return {"inspected": Estimate(inspected / n, n, n, *wilson(inspected, n, settings.confidence)), **scores}

    @cached_property
    def modes(self) -> pd.DataFrame:
        """`metrics.confusion` of the inspected captures, with the other captures in the column `not inspected`."""
        table = metrics.confusion(self.inspected, self.contract.defect_modes)
        others = self.answered.drop(self.inspected.index)["expected_defect_mode"].value_counts()
        return table.assign(**{NOT_INSPECTED: others.reindex(table.index, fill_value=0)})

    @cached_property
    def judgements(self) -> pd.DataFrame:
        """`modes` with all defect modes in one row and one column."""
        names = dict.fromkeys(self.contract.defect_modes, DEFECTIVE)
        return (
            self.modes.rename(names, axis=0)
            .rename(names, axis=1)
            .T.groupby(level=0, sort=False)
            .sum()
            .T.groupby(level=0, sort=False)
            .sum()
        )

    @cached_property
    def misses(self) -> list[Miss]:
        """The inspected captures that were answered wrong, the costliest first."""
        wrong = self.inspected[self.inspected["answer"] != self.inspected["expected"]]
        shares = address_probabilities(wrong, self.contract.layout.pins)
        misses = [self._miss(wrong.iloc[[number]], shares[number]) for number in range(len(wrong))]
        return sorted(misses, key=lambda miss: (SEVERITY.index(miss.outcome), miss.file))

    def to_dict(self) -> dict:
        """Return version, folder, scores, confusions, misses and captures that were not inspected, as JSON values."""
        labels = {row["file"]: row for _, row in self.answered.iterrows()}
        return {
            "model": self.model,
            "version": self.version,
            "folder": self.folder,
            "digest": self.digest,
            "captures": len(self.answered),
            "scores": {
                name: {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
                for name, score in self.scores.items()
            },
            "confusion": {
                "judgement": self.judgements.to_dict("index"),
                "defect_mode": self.modes.to_dict("index"),
            },
            "misses": [
                {
                    name: value
                    for name, value in asdict(miss).items()
                    if name not in ("expected_lines", "lines", "addresses")
                }
                for miss in self.misses
            ],
            "not_inspected": [
                {"file": file, "reason": reason, "expected": _verdict(labels[file], "expected")}
                for file, reason in self.not_inspected.items()
            ],
            "trained_on": list(self.trained_on),
            "remarks": list(self.remarks),
        }

    def _miss(self, answer: pd.DataFrame, shares: np.ndarray) -> Miss:
        row = answer.iloc[0]
        has_shares = not np.isnan(shares).any()
        most = np.argsort(-shares, kind="stable")[:_SUSPICIOUS] if has_shares else []
        addresses = self.contract.layout.addresses
        return Miss(
            file=row["file"],
            outcome=worst_outcome(answer),
            image_type=row["expected_image_type"],
            expected=_verdict(row, "expected"),
            answered=_verdict(row, "found"),
            expected_lines=tuple(row["expected"].split("\n")),
            lines=compared_lines(row["expected"], row["answer"]),
            p_defective=measured(row["p_defective"]),
            threshold=measured(row["threshold"]),
            addresses=tuple(shares.tolist()) if has_shares else (),
            suspicious_pins={
                str(addresses[pin]): round(float(shares[pin]), 4) for pin in most if shares[pin] >= _LEAST_SHARE
            },
        )


def _verdict(row: pd.Series, side: str) -> dict[str, str]:
    return {name: row[f"{side}_{name}"] for name in VERDICT}
