"""Optimizer steps of an adapter, on one process or on several that share every batch (`accelerate launch`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn

from pinspect.core.answers import AnswerContract
from pinspect.core.errors import ModelError
from pinspect.core.params import TrainParams
from pinspect.core.rows import Row
from pinspect.model.backends import Backend
from pinspect.model.batching import IGNORED
from pinspect.model.generation import answer_rows
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

# The embedding of a new word starts at random and has to move by its own length, about 0.5, within a few steps.
WORDS_RATE_FACTOR = 10.0


@dataclass(frozen=True)
class StepInputs:
    """This process's share of one optimizer step.

    Attributes:
        parts: Model inputs; on a CPU as many of them as torch has threads go through the model at the same time.
        answers: Number of answer tokens in all parts.
        tokens: Number of tokens in all parts, without padding.
    """

    parts: list[dict[str, torch.Tensor]]
    answers: int
    tokens: int


class Learner:
    """Trains an adapter; every process computes its share of a step, and the gradients are summed once per step.

    The loss is the mean over the answer tokens of all processes and parts, so neither the number of processes nor
    `train.part_tokens` changes the result. On a CPU each of torch's threads computes parts of its own: the matrices of
    a small model are too small to divide every product among threads (docs/LOG.md).

    Attributes:
        backend: The library that computes the training.
        model: The model with its adapter.
        encoder: Rows -> model inputs.
        params: The training parameters.
        processes: The processes of this training.
        trainable: The trainable parameters.
        optimizer: AdamW over the trainable parameters.
        tokens: Tokens of all steps so far and all processes, without padding.
    """

    def __init__(
        self, backend: Backend, model: Any, encoder: RowEncoder, params: TrainParams, processes: PartialState
    ) -> None:
        self.backend, self.model, self.encoder, self.params, self.processes = backend, model, encoder, params, processes
        self.device = torch.device(processes.device or "cpu")
        self.trainable: list[nn.Parameter] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(_rate_groups(model), weight_decay=params.weight_decay, betas=(0.9, 0.98))
        self.tokens = 0
        # Dropout draws from one generator, in an order that threads would make random.
        alone = self.device.type == "cuda" or params.dropout or not backend.parallel
        self._workers = 1 if alone else torch.get_num_threads()
        self._map: Any = map
        if self._workers > 1:
            self._map = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,)).map

    def inputs(self, rows: Sequence[Row]) -> StepInputs:
        """Build this process's share of a step, on the CPU; may run in another thread than `step`.

        Args:
            rows: All rows of the step.
        """
        share = rows[self.processes.process_index :: self.processes.num_processes]
        longest = max((len(self.encoder.chat(row).input_ids) for row in share), default=1)
        largest = max(1, self.params.part_tokens // longest)  # rows
        rounds = -(-len(share) // (largest * self._workers))
        size = -(-len(share) // max(1, rounds * self._workers))
        parts = [self.encoder.batch(part, answers=True) for part in _parts(share, max(1, size))]
        answers = sum(int((part["labels"][:, 1:] != IGNORED).sum()) for part in parts)
        return StepInputs(parts, answers, sum(int(part["attention_mask"].sum()) for part in parts))

    def step(self, inputs: StepInputs, number: int, rate: float) -> float:
        """Run one optimizer step.

        Args:
            inputs: This process's share of the step.
            number: Number of the step, from 0; it seeds the dropout, so that a resumed training draws the same.
            rate: Learning rate.

        Returns:
            The loss in nats per answer token.

        Raises:
            ModelError: The loss is not finite.
        """
        draw = number * self.processes.num_processes + self.processes.process_index
        torch.manual_seed((self.params.seed * 1_000_003 + draw) % 2**63)
        answers, tokens = self._sum(torch.tensor([inputs.answers, inputs.tokens])).tolist()
        total = torch.zeros((), device=self.device)
        for part_loss, gradients in self._map(lambda part: self._gradients(part, answers), inputs.parts):
            total += part_loss
            for parameter, gradient in zip(self.trainable, gradients, strict=False):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        loss = self._sum(total).item()
        if not math.isfinite(loss):
            raise ModelError(f"the loss is {loss} at step {number + 1}; lower train.learning_rate and train again")
        self._sum_gradients()
        nn.utils.clip_grad_norm_(self.trainable, self.params.maximum_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += tokens
        return loss

    def loss(self, rows: Sequence[Row]) -> float | None:
        """Return the mean loss in nats per answer token over `rows`, None without rows."""
        if not rows:
            return None
        self.model.eval()
        share = self._by_length(rows)[self.processes.process_index :: self.processes.num_processes]
        sums = torch.zeros(2, dtype=torch.float64)
        for part_sums in self._map(self._loss, _parts(share, max(1, self.params.batch_size // self._workers))):
            sums += part_sums
        self.model.train()
        total, answers = self._sum(sums).tolist()
        return total / answers

    def exact_match(self, rows: Sequence[Row], contract: AnswerContract, batch_size: int) -> float:
        """Return the share of rows whose answer, generated under the grammar, equals the expected answer.

        Args:
            rows: Rows of the chat dataset, at least one.
            contract: The answer contract.
            batch_size: Rows per batch.
        """
        self.backend.to_answer(self.model)
        share = rows[self.processes.process_index :: self.processes.num_processes]
        inspector = Inspector(self.model, self.encoder.processor, self.device)
        answers = answer_rows(inspector, share, self.encoder.pictures, contract, batch_size=batch_size)
        matches = sum(answer.text == row["answer"] for answer, row in zip(answers, share, strict=True))
        self.backend.to_train(self.model)
        return self._sum(torch.tensor(matches, dtype=torch.float64)).item() / len(rows)

    @torch.no_grad()
    def _loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the summed loss of `rows` and the number of their answer tokens, float64 (2,)."""
        batch = self._on_device(self.encoder.batch(rows, answers=True))
        loss = self.backend.answer_loss(self.model, batch, 1)
        return torch.tensor([loss.item(), (batch["labels"][:, 1:] != IGNORED).sum().item()], dtype=torch.float64)

    def _gradients(
        self, part: dict[str, torch.Tensor], answers: int
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        """Return the loss of a part and its gradients; the caller sums them in the order of the parts.

        A single worker adds the gradients itself and returns none: Unsloth's gradient checkpoints know no other way.
        """
        loss = self.backend.answer_loss(self.model, self._on_device(part), answers)
        if self._workers == 1:
            loss.backward()
            return loss.detach(), ()
        return loss.detach(), torch.autograd.grad(loss, self.trainable, allow_unused=True)

    def _sum_gradients(self) -> None:
        if self.processes.num_processes == 1:
            return
        # A process whose share is empty has no gradients.
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trainable]
        total = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [parameter.numel() for parameter in self.trainable]
        for parameter, gradient in zip(self.trainable, total.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` summed over all processes."""
        if self.processes.num_processes == 1:
            return tensor
        total = reduce(tensor.to(self.device), "sum")
        assert isinstance(total, torch.Tensor)
        return total

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _by_length(self, rows: Sequence[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: len(self.encoder.chat(row).input_ids))


def training_processes() -> PartialState:
    """Return the processes that `accelerate launch` started, or this process alone; each takes its own GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def _rate_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups, each with the factor of its learning rate."""
    groups: dict[float, list[nn.Parameter]] = {1.0: [], WORDS_RATE_FACTOR: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[WORDS_RATE_FACTOR if "trainable_tokens" in name else 1.0].append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters]


def _parts(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
