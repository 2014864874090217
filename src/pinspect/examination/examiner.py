"""Puts the prompts of an evaluation to a model: validation rows, test rows, controls, evidence maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from pinspect.core import predictions
from pinspect.core.answers import DEFECTIVE, VIEWS, AnswerContract, AnswerKind
from pinspect.core.errors import ModelError, StageInputError
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.params import EvaluateParams
from pinspect.core.predictions import CONSTRAINED, MODEL
from pinspect.core.question import CAMERA, Question, camera_else_virtual
from pinspect.core.rows import Row
from pinspect.examination import evidence
from pinspect.examination.controls import run_controls
from pinspect.examination.operating_point import choose_operating_point
from pinspect.examination.photographs import Photographs
from pinspect.examination.results import ControlResult, Evidence
from pinspect.examination.selection import shown_row_ids
from pinspect.examination.simple_questions import ask_simple_questions
from pinspect.model.generated_answer import EVEN_ODDS
from pinspect.model.generation import answer_rows

if TYPE_CHECKING:
    from pinspect.model.generated_answer import GeneratedAnswer
    from pinspect.model.loading import Inspector


@dataclass(frozen=True)
class Examiner:
    """Asks one model, by real generation.

    Attributes:
        inspector: The loaded model.
        images: Folder of the pictures that the rows of the chat dataset name, usually `data/composited`.
        contract: The answer contract.
        params: Section `evaluate` of `params.yaml`.
        photographs: The photographs behind the rows; None if they are not at hand.
    """

    inspector: Inspector
    images: Path
    contract: AnswerContract
    params: EvaluateParams
    photographs: Photographs | None = None

    @property
    def question(self) -> Question:
        """Return what production asks."""
        return Question.of(self.params)

    def calibrate(self, rows: Sequence[Row], weights: str) -> tuple[OperatingPoint, pd.DataFrame]:
        """Answer the validation rows, choose the operating point by the answers, and judge them by it.

        Args:
            rows: Rows of the validation split.
            weights: sha256 of the adapter.

        Returns:
            The operating point and the predictions table.
        """
        decoding = self.question.decoding
        chosen = self._select(rows, decoding)
        answers = self._generate(chosen, decoding, EVEN_ODDS)
        point = choose_operating_point(self._table(chosen, answers, decoding), self.params, weights)
        return point, self._table(chosen, [answer.judged(point.threshold) for answer in answers], decoding)

    def test(self, rows: Sequence[Row], threshold: float = EVEN_ODDS) -> tuple[pd.DataFrame, list[float]]:
        """Answer the test rows.

        The first decoding of `evaluate.decodings` answers every kind of prompt on the camera's captures, and
        production's kind and those of `evaluate.virtual_kinds` on the virtual line's. A second decoding answers
        production's kind only, on the camera's captures or, where there are none, on the virtual line's.

        Args:
            rows: Rows of the test split.
            threshold: P(defective) at and above it is defective, 0..1.

        Returns:
            The predictions table, and the seconds that each answer to production's question took.

        Raises:
            StageInputError: No row asks what production asks.
        """
        question = self.question
        if not question.rows(rows):
            raise StageInputError(
                f"data/chat/test.jsonl: none of its {len(rows)} rows is a zero-shot {question.kind} prompt on "
                f"{question.view} composites; set evaluate.view and evaluate.kind to one of chat.views and chat.kinds, "
                "and check that the test split has captures"
            )
        tables, seconds = [], []
        for decoding in self.params.decodings:
            chosen = self._select(rows, decoding)
            answers = self._generate(chosen, decoding, threshold)
            tables.append(self._table(chosen, answers, decoding))
            if decoding == question.decoding:
                pairs = zip(chosen, answers, strict=True)
                seconds += [answer.seconds for row, answer in pairs if question.asks(row) and answer.seconds]
        return pd.concat(tables, ignore_index=True), seconds

    def run_controls(
        self, rows: Sequence[Row], answers: pd.DataFrame, threshold: float = EVEN_ODDS
    ) -> list[ControlResult]:
        """Make, ask and judge every control in the view that production asks about.

        Args:
            rows: Rows of the test split.
            answers: The model's predictions for them by production's decoding.
            threshold: As in `test`.
        """
        return self._controls(rows, answers, threshold, self.question)

    def run_other_controls(
        self, rows: Sequence[Row], answers: pd.DataFrame, threshold: float = EVEN_ODDS
    ) -> dict[str, list[ControlResult]]:
        """Make, ask and judge every control in the other views of the chat dataset.

        Args:
            rows: As in `run_controls`.
            answers: As in `run_controls`.
            threshold: As in `test`.

        Returns:
            View -> the outcomes, without pictures.
        """
        questions = [replace(self.question, view=view) for view in VIEWS if view != self.question.view]
        return {
            question.view: [
                replace(result, pictures=()) for result in self._controls(rows, answers, threshold, question)
            ]
            for question in questions
            if question.rows(rows)
        }

    def _controls(
        self, rows: Sequence[Row], answers: pd.DataFrame, threshold: float, question: Question
    ) -> list[ControlResult]:
        plain = dict(zip(answers["id"], answers["answer"], strict=True))
        relit = self.photographs and self.photographs.relit
        answer = partial(self._texts, threshold)
        return run_controls(rows, self.images, self.contract, answer, plain, question, relit)

    def _texts(self, threshold: float, rows: Sequence[Row], folder: Path) -> list[str]:
        """Return the answers to changed rows, whose images lie in `folder`."""
        return [answer.text for answer in self._generate(rows, self.question.decoding, threshold, folder)]

    def ask_simple_questions(self, rows: Sequence[Row]) -> list[ControlResult]:
        """Ask where the star is and which marks the grid has, on a few test captures."""
        answer = partial(self._texts, EVEN_ODDS)
        return ask_simple_questions(rows, self.images, self.contract, answer, self.question)

    def map_evidence(self, rows: Sequence[Row], answers: pd.DataFrame, validation_rows: Sequence[Row]) -> Evidence:
        """Map where the model looks while it writes the address of a defect.

        Args:
            rows: Rows of the test split.
            answers: The model's predictions for them by production's decoding.
            validation_rows: Rows of the validation split, by which the layer to read is chosen.

        Returns:
            Maps of the answers that the report shows, and the agreement of the maps of production's prompt with the
            defective pins. For a model whose attention cannot be read, the reason.
        """
        texts = dict(zip(answers["id"], answers["answer"], strict=True))
        explained = camera_else_virtual(self.question.rows(rows))
        known = camera_else_virtual(self.question.rows(validation_rows), enough=self._any_defective)
        shown = set(shown_row_ids(answers, self.question))
        more_ids = shown - {row["id"] for row in explained}
        more = [row for row in rows if row["id"] in more_ids]
        try:
            layer = evidence.choose_layer(self.inspector, known, self.images, self.contract)
            adapted, base, other = (
                evidence.attention_maps(
                    self.inspector, chosen, texts, self.images, self.contract, layer=layer, adapted=with_adapter
                )
                for chosen, with_adapter in ((explained, True), (explained, False), (more, True))
            )
        except ModelError as error:
            return Evidence(reason=str(error))
        return Evidence(
            maps={row_id: evidence_map for row_id, evidence_map in (adapted | other).items() if row_id in shown},
            table=evidence.evidence_table(adapted, explained, self.contract),
            base_table=evidence.evidence_table(base, explained, self.contract),
        )

    def _any_defective(self, rows: Sequence[Row]) -> bool:
        kinds = [(str(row["answer"]), AnswerKind(str(row["answer_kind"]))) for row in rows]
        return any(self.contract.parse(answer, kind).judgement == DEFECTIVE for answer, kind in kinds)

    def _select(self, rows: Sequence[Row], decoding: str) -> list[Row]:
        """Return the rows that are answered by `decoding`, see `test`."""
        question = self.question
        if decoding != question.decoding:
            return camera_else_virtual([row for row in rows if row["kind"] == question.kind])
        virtual_kinds = {question.kind, *self.params.virtual_kinds}
        return [row for row in rows if row["source"] == CAMERA or row["kind"] in virtual_kinds]

    def _generate(
        self, rows: Sequence[Row], decoding: str, threshold: float, images: Path | None = None
    ) -> list[GeneratedAnswer]:
        with tqdm(total=len(rows), desc=f"answer ({decoding})", unit="answer") as bar:
            return answer_rows(
                self.inspector,
                rows,
                images or self.images,
                self.contract,
                batch_size=self.params.batch_size,
                constrained=decoding == CONSTRAINED,
                threshold=threshold,
                progress=bar.update,
            )

    def _table(self, rows: Sequence[Row], answers: Sequence[GeneratedAnswer], decoding: str) -> pd.DataFrame:
        pairs = zip(rows, answers, strict=True)
        return predictions.table(
            [predictions.from_generated(row, answer, self.contract, MODEL, decoding) for row, answer in pairs]
        )
