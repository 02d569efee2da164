"""A model in memory as lm-eval asks it: batches by tokens, long requests cut, and what is not finite counted.

Imports lm-eval; whoever imports this module has checked that it is there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import resolve_max_length
from torch.nn.utils.rnn import pad_sequence
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from loraprune.data.encoding import opened, opening_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.calibration.progress import Progress

Request = tuple[Any, list[int], list[int]]
"""What was asked in words, the tokens of the context, and those of the continuation that is scored."""


class HarnessModel(HFLM):
    """lm-eval's own model of transformers with four things changed.

    Batches hold about ``tokens_per_batch`` tokens instead of a number that is found by trying; likelihoods are taken
    from a softmax in 32 bits whatever the dtype; a continuation that is longer than the model's context is cut on the
    left instead of failing; and of what a tokenizer adds to a text, a causal model is given what opens it alone: an
    end is part neither of a context nor of an answer.

    Attributes:
        num_requests: log-likelihoods asked for.
        num_truncated: requests that lost their beginning.
        num_not_finite: log-likelihoods that were NaN.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_batch: int,
        batch_size: int | None = None,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._opening = opening_ids(tokenizer)
        super().__init__(
            pretrained=model,
            backend="seq2seq" if model.config.is_encoder_decoder else "causal",
            tokenizer=copy.deepcopy(tokenizer),  # it gets a pad token
            max_length=max_length,
            batch_size=batch_size or 1,
            softmax_dtype="float32",
        )
        context, self._max_length = resolve_max_length(model.config, default=VERY_LARGE_INTEGER), self.max_length
        if self._max_length > context:
            raise ValueError(f"--max-length is {max_length}, and the model reads {context} tokens at most.")
        self.tokenizer.model_max_length = VERY_LARGE_INTEGER  # nothing to warn of: long requests are cut here
        if batch_size is None:
            self.batch_size_per_gpu = max(1, tokens_per_batch // self.max_length)
        self._by_tokens, self._tokens_per_batch = batch_size is None, tokens_per_batch
        self._batch, self._batch_end = 1, 0
        self._progress = progress
        self.num_requests = 0
        self.num_truncated = 0
        self.num_not_finite = 0

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Request]) -> int:
        """Requests in the batch that the one at ``pos`` is in: the longest come first, and the first one counts."""
        if pos == 0 or pos >= self._batch_end:
            _, context, continuation = n_reordered_requests[pos]
            length = min(len(context) + len(continuation), self.max_length + 1)
            self._batch = max(1, self._tokens_per_batch // length)
            self._batch_end = pos + self._batch
        return self._batch

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Tokens of a text, for a causal model opened unless ``add_special_tokens`` is False, and never closed."""
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
        """Tokens of texts that are gone on from, padded, and which of them are no padding."""
        if self.backend != "causal":
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [torch.tensor(self.tok_encode(string)) for string in strings]
        pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
        ids = pad(rows, padding_value=self.tokenizer.pad_token_id)
        mask = pad([torch.ones_like(row) for row in rows])
        cut = -(left_truncate_len or ids.shape[1])
        return ids[:, cut:], mask[:, cut:]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Likelihoods of whole texts; lm-eval itself puts one token before each."""
        opening, self._opening = self._opening, []
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._opening = opening

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; at least one is left for the continuation, which some tokenizers merge into the context."""
        before, after = super()._encode_pair(context, continuation)
        if not after:
            after = self.tok_encode(continuation, add_special_tokens=False)
        if not after:
            raise ValueError(f"The tokenizer makes no token of the answer {continuation!r}; it cannot be scored.")
        return before, after

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitting, fixed = [self._fit(request) for request in requests], self.batch_size_per_gpu
        self._hear(len(requests))
        if self._by_tokens:
            self.batch_size_per_gpu = "auto"  # leaves it to the scheduler, but for whole texts (override_bs)
        try:
            answers = super()._loglikelihood_tokens(fitting, disable_tqdm=disable_tqdm, override_bs=override_bs)
        finally:
            self.batch_size_per_gpu = fixed
        self.num_requests += len(answers)
        self.num_not_finite += sum(math.isnan(likelihood) for likelihood, _ in answers)
        return answers

    def _fit(self, request: Request) -> Request:
        words, context, continuation = request
        if self.backend == "seq2seq":
            self.num_truncated += max(len(context), len(continuation)) > self.max_length
            return words, context, continuation[-self.max_length :]
        self.num_truncated += len(context) + len(continuation) > self.max_length + 1
        if len(continuation) > self.max_length:
            # The scored tokens are the last ones that the model can see, and the one before them is their context.
            kept = continuation[-self.max_length :]
            return words, (context + continuation)[: -self.max_length][-1:], kept
        return request

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Text that the model writes."""
        self._hear(len(requests))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _hear(self, total: int) -> None:
        """Tell of every answer, which lm-eval offers to a cache."""
        if self._progress is not None:
            self._progress(0, total)
            self.set_cache_hook(_Answers(self._progress, total))


class _Answers:
    """Takes the place of lm-eval's cache of answers: keeps none, and tells how many there are."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add_partial(self, *_: Any) -> None:
        self._done += 1
        self._progress(self._done, self._total)
