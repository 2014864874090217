"""Two ways to read answers on after their prompts: whole trees of tokens in one forward pass, or token by token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from pinspect.model.loading import Inspector


@dataclass(frozen=True)
class TokenTree:
    """Alternative continuations as one tree, such as the beginnings of all addresses.

    Attributes:
        paths: The tokens from the root to each node; a path comes after the path that it extends.
        tokens: The last token of each path.
        numbers: Number of each path.
        branches: Numbers of the paths that several continuations extend by different tokens, and those of `leads`.
        depths: int64 (nodes,), 0 for the first token of a continuation.
        sees: bool (nodes, nodes): whether a node (row) continues another one (column), or is the same.
        leads: The paths after which an address begins.
    """

    paths: tuple[tuple[int, ...], ...]
    tokens: list[int]
    numbers: dict[tuple[int, ...], int]
    branches: list[int]
    depths: torch.Tensor
    sees: torch.Tensor
    leads: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, addresses: Sequence[Sequence[int]], leads: tuple[tuple[int, ...], ...] = ((),)) -> TokenTree:
        """Return the tree of all beginnings of the addresses, each after every lead, without their last tokens."""
        continuations = [(*lead, *address) for lead in leads for address in addresses]
        beginnings = (tuple(tokens[:count]) for tokens in continuations for count in range(1, len(tokens)))
        paths = tuple(sorted(dict.fromkeys(beginnings), key=len))
        sees = [[node[: len(other)] == other for other in paths] for node in paths]
        following = [
            {tokens[len(path)] for tokens in continuations if tuple(tokens[: len(path)]) == path} for path in paths
        ]
        return cls(
            paths,
            [path[-1] for path in paths],
            {path: number for number, path in enumerate(paths)},
            [number for number, path in enumerate(paths) if len(following[number]) > 1 or path in leads],
            torch.tensor([len(path) - 1 for path in paths], dtype=torch.int64),
            torch.tensor(sees, dtype=torch.bool).reshape(len(paths), len(paths)),
            leads,
        )


NO_TREE = TokenTree.of((), ())


class TreeReader:
    """Reads on, each row its own tokens, and after them a tree of continuations, in one forward pass.

    The attention mask of a pass hides from every token what does not lead to it. What turns out not to belong to the
    answer stays in the cache and is hidden from then on. `cache` has keys and values of all tokens so far.

    Args:
        inspector: The model.
        batch: The prompts, padded on the left: `input_ids`, `attention_mask`, and what their positions depend on.
        cache: Keys and values of the first tokens of the prompts; None to read the prompts now. The others are read
            with the first pass.
        pictures: Model inputs of the pictures among the others.

    Raises:
        ValueError: The cache forgets tokens.
    """

    def __init__(
        self,
        inspector: Inspector,
        batch: dict[str, torch.Tensor],
        cache: Any = None,
        pictures: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self._model, batch = inspector.base_model, inspector.place(batch)
        self._pictures = inspector.place(pictures or {})
        positions = self._model._prepare_position_ids_for_generation(batch["input_ids"], dict(batch))
        if cache is None:
            cache = self._model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values
        if any(layer.is_sliding for layer in cache.layers):
            raise ValueError("a cache with a sliding window forgets tokens that the mask of a tree counts")
        self.cache = cache
        known = cache.get_seq_length()
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        self._past, self._ahead = mask[:, :known], mask[:, known:]
        self._ids_ahead, self._positions_ahead = ids[:, known:], positions[..., known:]
        self._next = positions[..., -1] + 1

    def read(self, runs: Sequence[Sequence[int]], trees: Sequence[TokenTree], kept: torch.Tensor) -> torch.Tensor:
        """Read a run of tokens and a tree after it in every row, and what is left of the prompts before them.

        Args:
            runs: The tokens of each row.
            trees: The tree after the run of each row.
            kept: int64 (n,), the tokens after which logits are wanted, counted from the start of the run.

        Returns:
            float32 (rows, n, vocabulary) on the CPU.
        """
        nodes = [len(run) + len(tree.tokens) for run, tree in zip(runs, trees, strict=True)]
        shape = len(runs), max(nodes)
        ids, depths = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        real = torch.arange(shape[1]) < torch.tensor(nodes)[:, None]
        lead = self._ids_ahead.shape[1]
        width = lead + shape[1]
        sees = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(runs), 1, 1)
        for row, (run, tree) in enumerate(zip(runs, trees, strict=True)):
            start, end = len(run), nodes[row]
            ids[row, :start], depths[row, :start] = torch.tensor(run), torch.arange(start)
            ids[row, start:end], depths[row, start:end] = torch.tensor(tree.tokens), start + tree.depths
            sees[row, lead + start : lead + end, lead + start : lead + end] = tree.sees
        device = self._past.device
        new = torch.cat([self._ahead, real.to(device)], dim=1)
        past = self._past[:, None].expand(-1, width, -1)
        sees = torch.cat([past, sees.to(device) & new[:, None]], dim=2)
        dtype = self._model.dtype
        hidden = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)
        kept = lead + kept.to(device)
        token = _wanted.set((kept, width))
        try:
            output = self._model(
                input_ids=torch.cat([self._ids_ahead, ids.to(device)], dim=1),
                attention_mask=hidden[:, None],
                position_ids=torch.cat([self._positions_ahead, self._next[..., None] + depths.to(device)], dim=-1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=kept,
                return_dict=True,
                **self._pictures,
            )
        finally:
            _wanted.reset(token)
        self.cache = output.past_key_values
        self._past = torch.cat([self._past, self._ahead], dim=1)
        self._ahead, self._pictures = self._ahead[:, :0], {}
        self._ids_ahead, self._positions_ahead = self._ids_ahead[:, :0], self._positions_ahead[..., :0]
        return output.logits.float().cpu()

    def keep(self, accepted: torch.Tensor, rows: Sequence[int] | None = None) -> None:
        """Continue after those tokens of the last pass that belong to the answers.

        Args:
            accepted: bool (rows, tokens of the last pass after the prompt).
            rows: The rows that continue; None for all.
        """
        self._past = torch.cat([self._past, accepted.to(self._past.device)], dim=1)
        self._next = self._next + accepted.sum(dim=1).to(self._next.device)
        if rows is not None and len(rows) < len(accepted):
            index = torch.tensor(rows, device=self._past.device)
            self.cache.batch_select_indices(index)
            self._past, self._ahead, self._ids_ahead = self._past[index], self._ahead[index], self._ids_ahead[index]
            self._next, self._positions_ahead = self._next[..., index], self._positions_ahead[..., index, :]


# Numbers of the tokens whose logits a pass is for, and how many tokens it reads; None if all are wanted.
_wanted: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("wanted", default=None)


def skip_unwanted(model: Any) -> None:
    """Prepare a model for `TreeReader`, whose passes want the logits of few tokens.

    Of the other tokens the last layer then computes keys and values only; the remaining products give 0 for them, and
    nothing reads it.

    Args:
        model: A model of transformers, without an adapter's wrapper.
    """
    layer = getattr(model.get_decoder(), "layers", [None])[-1]
    attention = getattr(layer, "self_attn", None)
    for owner, name in ((attention, "q_proj"), (attention, "o_proj"), (layer, "mlp")):
        module = getattr(owner, name, None)
        if module is not None and not getattr(module, "skips_unwanted", False):  # a copy has the hooks of its original
            module.skips_unwanted = True
            module.register_forward_pre_hook(_without_unwanted)
            module.register_forward_hook(_with_unwanted)


def _without_unwanted(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    wanted = _wanted.get()
    return inputs if wanted is None else (inputs[0][:, wanted[0]], *inputs[1:])


def _with_unwanted(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    wanted = _wanted.get()
    if wanted is None:
        return output
    tokens, count = wanted
    return output.new_zeros(len(output), count, output.shape[2]).index_copy_(1, tokens, output)


class TokenReader:
    """Reads on token by token, by the model's own bookkeeping: slower, and right for every model.

    Args:
        inspector: The model.
        batch: The prompts, padded on the left. They are read at once.
    """

    def __init__(self, inspector: Inspector, batch: dict[str, torch.Tensor]) -> None:
        self._model = inspector.base_model
        self._outputs: Any = {}

        def loop(
            model: Any,
            input_ids: Any,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **inputs: Any,
        ) -> torch.Tensor:
            """Take over what `generate` has prepared for its loop."""
            self._ids, self._inputs = input_ids, inputs
            self._forward(input_ids.new_empty((len(input_ids), 0)))
            return input_ids

        inspector.generate(batch, custom_generate=loop)

    @property
    def logits(self) -> torch.Tensor:
        """float32 (rows, vocabulary) of the next token."""
        return self._outputs.logits[:, -1].float()

    def read(self, tokens: torch.Tensor) -> None:
        """Read `tokens`, int64 (rows, n), after all tokens before."""
        for token in tokens.split(1, dim=1):
            self._forward(token)

    def peek(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits after further tokens, the same for all rows, and forget that they were read."""
        state = self._ids, dict(self._inputs), self._outputs
        cache = self._inputs["past_key_values"]
        self._inputs["past_key_values"] = self._outputs.past_key_values = copy.deepcopy(cache)
        self.read(torch.tensor([tokens] * len(self._ids)))
        logits = self.logits
        self._ids, self._inputs, self._outputs = state
        self._inputs["past_key_values"] = self._outputs.past_key_values = cache
        return logits

    def _forward(self, tokens: torch.Tensor) -> None:
        first, count = not self._outputs, tokens.shape[1]
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)], dim=1)
        # The model's own bookkeeping continues masks and positions (Qwen's have three axes) after the prompt.
        self._inputs = self._model._update_model_kwargs_for_generation(
            self._outputs, self._inputs, is_encoder_decoder=False, num_new_tokens=count
        )
        prepared = self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=None if first else count, is_first_iteration=first, **self._inputs
        )
        self._outputs = self._model(**prepared, return_dict=True)
        self._inputs["past_key_values"] = self._outputs.past_key_values
