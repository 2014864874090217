"""Optimizer steps of an adapter, on one process or on several that share every batch (`accelerate launch`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn

from pinspect.core.answers import AnswerContract
from pinspect.core.errors import ModelError
from pinspect.core.params import TrainParams
from pinspect.model.backends import Backend
from pinspect.model.batching import IGNORED
from pinspect.model.generation import answer_rows
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

# A new word's embedding starts anywhere: it has to go as far as it is long, about half a unit, in a few steps.
WORDS_RATE_FACTOR = 10.0


@dataclass(frozen=True)
class StepInputs:
    """This process's share of one step's rows, in the parts that go through the model one after another.

    answers, tokens: how many tokens of answers, and of anything but padding, its parts hold.
    """

    parts: list[dict[str, torch.Tensor]]
    answers: int
    tokens: int


class Learner:
    """Trains the adapter of `model`; every process takes its share of a step's rows, and their gradients are added up.

    The gradients of an adapter are small, so that they are summed once a step instead of while they arise. The loss is
    a mean over the answer tokens of all processes and parts: neither their number nor `train.accumulation` changes what
    is learnt.
    """

    def __init__(
        self, backend: Backend, model: nn.Module, encoder: RowEncoder, params: TrainParams, team: PartialState
    ) -> None:
        self.backend, self.model, self.encoder, self.params, self.team = backend, model, encoder, params, team
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(_rate_groups(model), weight_decay=params.weight_decay, betas=(0.9, 0.98))
        self.tokens = 0

    def inputs(self, rows: Sequence[dict]) -> StepInputs:
        """This process's share of `rows` as model inputs, on the CPU; may run in another thread than `step`."""
        share = rows[self.team.process_index :: self.team.num_processes]
        size = max(1, -(-len(share) // self.params.accumulation))
        parts = [self.backend.batch(self.encoder, part) for part in _parts(share, size)]
        answers = sum(int((part["labels"][:, 1:] != IGNORED).sum()) for part in parts)
        return StepInputs(parts, answers, sum(int(part["attention_mask"].sum()) for part in parts))

    def step(self, inputs: StepInputs, number: int, rate: float) -> float:
        """One optimizer step at learning rate `rate`; returns its loss, nats an answer token.

        number: counted from 0; it seeds the dropout, so that a resumed training draws alike. Raises ModelError when the
        loss is no number.
        """
        draw = number * self.team.num_processes + self.team.process_index
        torch.manual_seed((self.params.seed * 1_000_003 + draw) % 2**63)
        answers, tokens = self._sum(torch.tensor([inputs.answers, inputs.tokens])).tolist()
        loss = torch.zeros((), device=self.team.device)
        for part in inputs.parts:
            share = self.backend.answer_loss(self.model, self._moved(part), answers)
            share.backward()
            loss += share.detach()
        loss = self._sum(loss).item()
        if not math.isfinite(loss):
            raise ModelError(f"the loss is {loss} at step {number + 1}; lower train.learning_rate and train again")
        self._add_up_gradients()
        nn.utils.clip_grad_norm_(self.trainable, self.params.maximum_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += tokens
        return loss

    @torch.no_grad()
    def loss(self, rows: Sequence[dict]) -> float | None:
        """Mean loss of an answer token over `rows`; None without any."""
        if not rows:
            return None
        self.model.eval()
        share = self._by_length(rows)[self.team.process_index :: self.team.num_processes]
        found = torch.zeros(2, dtype=torch.float64)
        for part in _parts(share, self.params.batch_size):
            batch = self._moved(self.backend.batch(self.encoder, part))
            summed = self.backend.answer_loss(self.model, batch, 1).item()
            found += torch.tensor([summed, (batch["labels"][:, 1:] != IGNORED).sum().item()])
        self.model.train()
        total, answers = self._sum(found).tolist()
        return total / answers

    def exact_match(self, rows: Sequence[dict], contract: AnswerContract, batch_size: int) -> float:
        """Share of `rows` (not empty) whose answer, generated under the grammar, is the expected one."""
        self.backend.to_answer(self.model)
        share = rows[self.team.process_index :: self.team.num_processes]
        inspector = Inspector(self.model, self.encoder.processor, self.team.device)
        answers = answer_rows(inspector, share, self.encoder.images_dir, contract, batch_size=batch_size)
        right = sum(answer.text == row["answer"] for answer, row in zip(answers, share, strict=True))
        self.backend.to_train(self.model)
        return self._sum(torch.tensor(right, dtype=torch.float64)).item() / len(rows)

    def _add_up_gradients(self) -> None:
        if self.team.num_processes == 1:
            return
        # A process whose share was empty has none of its own.
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trainable]
        added = self._sum(torch.cat([gradient.flatten() for gradient in found]))
        sizes = [parameter.numel() for parameter in self.trainable]
        for parameter, gradient in zip(self.trainable, added.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all processes."""
        return tensor if self.team.num_processes == 1 else reduce(tensor.to(self.team.device), "sum")

    def _moved(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.team.device) for name, tensor in batch.items()}

    def _by_length(self, rows: Sequence[dict]) -> list[dict]:
        return sorted(rows, key=lambda row: len(self.encoder.chat(row).input_ids))


def assemble() -> PartialState:
    """The processes that `accelerate launch` started, this one among them, alone without it; each takes its own GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def _rate_groups(model: nn.Module) -> list[dict]:
    """Trainable parameters in groups, each with the factor by which its learning rate is the higher."""
    groups: dict[float, list[nn.Parameter]] = {1.0: [], WORDS_RATE_FACTOR: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[WORDS_RATE_FACTOR if "trainable_tokens" in name else 1.0].append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters]


def _parts(rows: Sequence[dict], size: int) -> Iterator[Sequence[dict]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
