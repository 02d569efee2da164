"""lm-eval interface of a model in memory: batches by tokens, truncated long requests, counts of non-finite values.

This module imports lm-eval. Check that it is installed before importing this module.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import resolve_max_length
from torch.nn.utils.rnn import pad_sequence
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from loraprune.data.encoding import opened, opening_ids
from loraprune.metrics.tasks.lm_eval import own_random_numbers
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.calibration.progress import Progress

Answer = TypeVar("Answer")
Request = tuple[Any, list[int], list[int]]
"""A request as text, the tokens of its context, and the tokens of the scored continuation."""


class HarnessModel(HFLM):
    """lm-eval's own transformers model with five changes.

    1. Batches hold about ``tokens_per_batch`` tokens instead of a number found by trial.
    2. Likelihoods come from a softmax in 32 bits, whatever the dtype.
    3. A continuation longer than the model's context is truncated on the left instead of failing.
    4. Of the tokens that a tokenizer adds, a causal model gets only those at the start. An end token belongs neither in
       a context nor in an answer.
    5. Batches are made here and are the same for one process and for several, so processes can share them. Sampling in
       a batch starts from a seed of its own.

    Attributes:
        num_requests: number of requested log-likelihoods.
        num_truncated: number of requests truncated at their beginning.
        num_not_finite: number of log-likelihoods that were NaN.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_batch: int,
        batch_size: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        shared: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._opening = opening_ids(tokenizer)
        super().__init__(
            pretrained=model,
            backend="seq2seq" if model.config.is_encoder_decoder else "causal",
            tokenizer=copy.deepcopy(tokenizer),  # the tokenizer gets a pad token
            max_length=max_length,
            batch_size=batch_size or 1,
            softmax_dtype="float32",
        )
        context, self._max_length = resolve_max_length(model.config, default=VERY_LARGE_INTEGER), self.max_length
        if self._max_length > context:
            raise ValueError(f"--max-length is {max_length}, and the model reads {context} tokens at most.")
        self.tokenizer.model_max_length = VERY_LARGE_INTEGER  # no warning is needed: long requests are truncated here
        self._batch_size = batch_size or max(1, tokens_per_batch // self.max_length)
        self.batch_size_per_gpu = self._batch_size
        self._tokens_per_batch = tokens_per_batch if batch_size is None else None
        self._seed, self._shared, self._progress = seed, shared, progress
        self.num_requests = 0
        self.num_truncated = 0
        self.num_not_finite = 0

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Tokenize without end tokens. A causal model gets start tokens unless ``add_special_tokens`` is False."""
        if self.backend != "causal" or add_special_tokens is False:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **options)
        token_ids = opened(self._opening, super().tok_encode(string, add_special_tokens=False, **options))
        return token_ids[-left_truncate_len:] if left_truncate_len else token_ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of texts to continue, padded, with their attention mask."""
        if self.backend != "causal":
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [torch.tensor(self.tok_encode(string)) for string in strings]
        pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
        ids = pad(rows, padding_value=self.tokenizer.pad_token_id)
        mask = pad([torch.ones_like(row) for row in rows])
        cut = -(left_truncate_len or ids.shape[1])
        return ids[:, cut:], mask[:, cut:]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Likelihoods of whole texts. lm-eval itself puts one token before each."""
        opening, self._opening = self._opening, []
        self.batch_size_per_gpu = sys.maxsize  # all windows of all texts, batched here
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._opening, self.batch_size_per_gpu = opening, self._batch_size

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both. The continuation keeps at least one; some tokenizers merge it into the context."""
        before, after = super()._encode_pair(context, continuation)
        if not after:
            after = self.tok_encode(continuation, add_special_tokens=False)
        if not after:
            raise ValueError(f"The tokenizer makes no token of the answer {continuation!r}; it cannot be scored.")
        return before, after

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitting = [self._fit(request) for request in requests]
        ask = super()._loglikelihood_tokens

        def answer(places: Sequence[int]) -> list[tuple[float, bool]]:
            fixed, self.batch_size_per_gpu = self.batch_size_per_gpu, "auto"  # all together
            try:
                return ask([fitting[place] for place in places], disable_tqdm, override_bs=len(places))
            finally:
                self.batch_size_per_gpu = fixed

        answers = self._answers(len(requests), self._batches(fitting), answer)
        self.num_requests += len(answers)
        self.num_not_finite += sum(math.isnan(likelihood) for likelihood, _ in answers)
        return answers

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Request indices of each batch, longest first. Requests that one forward pass answers stay together."""
        groups: dict[Any, list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            alike = tuple(context + continuation[:-1]) if self.backend == "causal" else place
            groups.setdefault(alike, []).append(place)

        def tokens(places: Sequence[int]) -> list[int]:
            _, context, continuation = requests[max(places, key=lambda place: len(requests[place][2]))]
            return context + continuation

        passes = sorted(groups.values(), key=lambda places: (-len(tokens(places)), tokens(places)))
        batches = []
        while passes:
            size = self._batch_size
            if self._tokens_per_batch is not None:
                size = max(1, self._tokens_per_batch // min(len(tokens(passes[0])), self.max_length + 1))
            batches.append([place for places in passes[:size] for place in places])
            passes = passes[size:]
        return batches

    def _answers(
        self, count: int, batches: Sequence[Sequence[int]], answer: Callable[[Sequence[int]], list[Answer]]
    ) -> list[Answer]:
        """Return the answers to all requests in order. Batches of request indices are divided among the processes."""
        if self._progress is not None:
            self._progress(0, count)
        found = made_of_each(
            len(batches),
            lambda number: answer(batches[number]),
            shared=self._shared,
            sizes=[len(batch) for batch in batches],
            progress=self._progress,
        )
        at = {
            place: one
            for places, answers in zip(batches, found, strict=True)
            for place, one in zip(places, answers, strict=True)
        }
        return [at[place] for place in range(count)]

    def _fit(self, request: Request) -> Request:
        words, context, continuation = request
        if self.backend == "seq2seq":
            self.num_truncated += max(len(context), len(continuation)) > self.max_length
            return words, context, continuation[-self.max_length :]
        self.num_truncated += len(context) + len(continuation) > self.max_length + 1
        if len(continuation) > self.max_length:
            # Only the last tokens of the continuation are scored. Their context is the one token before them.
            kept = continuation[-self.max_length :]
            return words, (context + continuation)[: -self.max_length][-1:], kept
        return request

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Text that the model generates."""
        write = super().generate_until
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        batches = []
        for places in alike.values():
            contexts = {place: requests[place].args[0] for place in places}
            ordered = sorted(places, key=lambda place: (-len(self.tok_encode(contexts[place])), contexts[place]))
            batches += [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]

        def answer(places: Sequence[int]) -> list[str]:
            with own_random_numbers(self._seed + places[0]):
                return write([requests[place] for place in places], disable_tqdm)

        return self._answers(len(requests), batches, answer)
