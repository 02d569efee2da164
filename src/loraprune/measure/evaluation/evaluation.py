"""Interface of all measures of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from loraprune.calibration.progress import ProgressOf
from loraprune.checkpoint.source import ModelSource
from loraprune.data.encoding import added_ids, opening_ids
from loraprune.tasks.registry import task_of_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Evaluation(ABC):
    """One measure of a model, such as the perplexity of one text.

    Attributes:
        kind: one of :data:`loraprune.measure.evaluation.results.KINDS`.
        name: name of the data.
        data: source of the data, and its hash.
        tasks: names of the model tasks that it supports.
        option: command-line option that requests it.
    """

    kind: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    option: ClassVar[str]
    name: str
    data: Mapping[str, Any]

    @classmethod
    def check_kind(cls, model: ModelSource) -> None:
        """Check that models of this kind support the measure, without reading the data.

        Raises:
            ValueError: they do not.
        """
        task = task_of_source(model).name
        if task not in cls.tasks:
            raise ValueError(
                f"{cls.option} is for {' and '.join(cls.tasks)} models, and {model.name} is made for {task}. "
                "Evaluate it by itself."
            )

    @abstractmethod
    def check(self, model: ModelSource) -> None:
        """Check that a model of the right kind fits the data, without its weights.

        Raises:
            ValueError: it does not.
        """

    @abstractmethod
    def settings(self, model: ModelSource) -> dict[str, Any]:
        """All conditions of the figures except data, dtype and device."""

    @abstractmethod
    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """Return the figures by name for a checked model. All processes of a run share the work and return the same.

        Args:
            source: source of the model.
            model: in memory, in evaluation mode.
            progress: called with the progress.
        """


def encoding_of(model: ModelSource, bos: str | None = None) -> dict[str, Any]:
    """Start tokens that the tokenizer of a causal model adds to text, as part of the settings of a figure.

    Args:
        model: of any kind.
        bos: setting for segments of text; None for requests and prompts.
    """
    if task_of_source(model).name != "causal-lm":
        return {}
    before, behind = added_ids(model.tokenizer)
    opens = bos == "always" and bool(opening_ids(model.tokenizer, bos))
    begin = {"bos": opens} if opens or (before and bos == "never") else {}
    return {**begin, **({"end": "left out"} if behind else {})}


def check_context(length: int, model: ModelSource) -> None:
    """Check that a model's context holds this many tokens.

    Raises:
        ValueError: it does not.
    """
    if model.context is not None and length > model.context:
        raise ValueError(
            f"--max-length is {length}, and {model.name} reads {model.context} tokens at most. Use "
            f"--max-length {model.context} or less."
        )


def check_largest(model: ModelSource, largest: int, what: str) -> None:
    """Check that a model has an embedding for the highest token id of some text.

    Raises:
        ValueError: it has none.
    """
    if model.vocabulary is not None and largest >= model.vocabulary:
        raise ValueError(
            f"The tokenizer does not fit {model.name}: {what} has token {largest}, and the model knows "
            f"{model.vocabulary:,}. Name the right one with --tokenizer."
        )


def check_tokens(model: ModelSource, texts: Iterable[str], what: str) -> None:
    """Check that a model has an embedding for every token of some texts. They are tokenized only if it may not.

    Raises:
        ValueError: a token has no embedding.
    """
    if model.vocabulary is None or len(model.tokenizer) <= model.vocabulary:
        return
    for text in texts:
        check_largest(model, max(model.tokenizer(text)["input_ids"], default=0), what)
