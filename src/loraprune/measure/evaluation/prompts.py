"""Completions of prompts, to be read side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loraprune.calibration.progress import ToldOf
from loraprune.measure.evaluation.config import EvaluationConfig
from loraprune.measure.evaluation.evaluation import Evaluation
from loraprune.measure.model import MeasuredModel
from loraprune.metrics.completions import DEFAULT_PROMPTS, Writing, complete_prompts, read_prompts
from loraprune.tasks.source import Measurable

DRAWN_ONLY = ("temperature", "top_p", "seed")


class PromptsEvaluation(Evaluation):
    """What a model writes after prompts."""

    kind = "completions"
    tasks = ("causal-lm", "text-to-text")
    option = "--prompts"

    def __init__(self, prompts: Sequence[str], writing: Writing) -> None:
        digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        self.name, self.data = "prompts", {"prompts": len(prompts), "sha256": digest}
        self._prompts, self._writing = list(prompts), writing

    @classmethod
    def of(cls, config: EvaluationConfig) -> PromptsEvaluation:
        """Prompts as given or from files; our own where none are.

        Raises:
            ValueError: a file is missing or empty.
        """
        assert config.prompts is not None
        drawn = {"temperature": config.temperature, "top_p": config.top_p}
        writing = Writing(
            max_new_tokens=config.max_new_tokens,
            sample=config.sample,
            seed=config.seed,
            **{name: value for name, value in drawn.items() if value is not None},
        )
        return cls(read_prompts(config.prompts or DEFAULT_PROMPTS), writing)

    def check(self, model: Measurable) -> None:
        """Prompts suit every model that writes."""

    def settings(self, model: Measurable) -> dict[str, Any]:
        """How tokens are chosen."""
        drawn = self._writing.sample
        return {name: value for name, value in asdict(self._writing).items() if drawn or name not in DRAWN_ONLY}

    def measure(self, model: MeasuredModel, told: ToldOf) -> dict[str, Any]:
        """Prompts with their completions."""
        assert model.tokenizer is not None
        texts = complete_prompts(
            model.model,
            model.tokenizer,
            self._prompts,
            self._writing,
            told=lambda done, total: told("completions", done, total),
        )
        pairs = zip(self._prompts, texts, strict=True)
        return {"completions": [{"prompt": prompt, "completion": text} for prompt, text in pairs]}
