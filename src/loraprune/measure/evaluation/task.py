"""Tasks of lm-eval, and local files of items like them."""

from __future__ import annotations

from typing import Any

from loraprune.calibration.progress import ToldOf
from loraprune.measure.evaluation.evaluation import Evaluation, check_context
from loraprune.measure.model import MeasuredModel
from loraprune.metrics.tasks import ChosenTask, LoadedTask, load_task, score_task
from loraprune.tasks.source import Measurable


class TaskEvaluation(Evaluation):
    """What a model reaches in one task."""

    kind = "task"
    tasks = ("causal-lm", "text-to-text")
    option = "--tasks"

    def __init__(
        self, chosen: ChosenTask, *, limit: int | None, max_length: int | None, seed: int, batch_size: int | None
    ) -> None:
        self.name, self.data = chosen.name, dict(chosen.data)
        self._chosen, self._limit, self._max_length = chosen, limit, max_length
        self._seed, self._batch_size = seed, batch_size
        self._loaded: LoadedTask | None = None

    def check(self, model: Measurable) -> None:
        """Fetch the task's data."""
        if self._max_length is not None:
            check_context(self._max_length, model)
        if self._loaded is None:
            self._loaded = load_task(self._chosen)
            self.data = dict(self._loaded.data)

    def settings(self, model: Measurable) -> dict[str, Any]:
        """Shots, limit, seed, and the tokens that the model is given at most."""
        return {
            "num_fewshot": self._chosen.num_fewshot,
            "limit": self._limit,
            "max_length": self._max_length,
            "seed": self._seed,
        }

    def measure(self, model: MeasuredModel, told: ToldOf) -> dict[str, Any]:
        """Its metrics with standard errors, and counts."""
        assert self._loaded is not None
        assert model.tokenizer is not None
        score = score_task(
            model.model,
            model.tokenizer,
            self._loaded,
            limit=self._limit,
            batch_size=self._batch_size or "auto",
            max_length=self._max_length,
            seed=self._seed,
            told=told,
        )
        return score.to_values()
