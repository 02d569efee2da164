"""Perplexity of a text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loraprune.calibration.progress import ToldOf
from loraprune.measure.evaluation.evaluation import Evaluation
from loraprune.measure.model import MeasuredModel
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import Text
from loraprune.metrics.windows import Windows, cut_into_windows
from loraprune.tasks.source import Measurable


class TextEvaluation(Evaluation):
    """How well a causal language model foretells a text."""

    kind = "perplexity"
    tasks = ("causal-lm",)
    option = "--ppl"

    def __init__(
        self, text: Text, *, length: int, stride: int | None, limit: int | None, batch_size: int | None
    ) -> None:
        self.name, self.data = text.name, text.facts
        self._text, self._length, self._stride, self._limit = text, length, stride, limit
        self._batch_size = batch_size
        self._windows: dict[str, Windows] = {}

    def check(self, model: Measurable) -> None:
        """Tokenize the text; it must be long enough, and the model must know its tokens."""
        assert model.tokenizer is not None
        windows = cut_into_windows(
            self._text, model.tokenizer, length=self._length, stride=self._stride, limit=self._limit
        )
        largest = int(windows.ids_WL.max())
        if model.vocabulary is not None and largest >= model.vocabulary:
            raise ValueError(
                f"The tokenizer does not fit {model.name}: the text {self.name!r} has token {largest}, and the model "
                f"knows {model.vocabulary:,}. Name the right one with --tokenizer."
            )
        self._windows[model.name] = windows

    def settings(self, model: Measurable) -> dict[str, Any]:
        """Length, stride and limit."""
        return {"max_length": self._length, "stride": self._stride, "limit": self._limit}

    def measure(self, model: MeasuredModel, told: ToldOf) -> dict[str, Any]:
        """Perplexities, bits per byte, and counts."""
        windows = self._windows[model.name]
        label = f"{self.name}@{self._length}"
        measured = text_perplexity(
            model.model,
            windows,
            batch_size=self._batch_size,
            told=lambda done, total: told(f"{label} tokens", done, total),
        )
        return asdict(measured)
