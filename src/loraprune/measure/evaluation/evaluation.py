"""The form of everything that a model can be evaluated on."""

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
        name: of the data.
        data: where the data comes from, and its hash.
        tasks: names of the tasks of models that it is for.
        option: of the command line that asks for it.
    """

    kind: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    option: ClassVar[str]
    name: str
    data: Mapping[str, Any]

    @classmethod
    def check_kind(cls, model: ModelSource) -> None:
        """Make sure that models of this kind are measured so; nothing of the data is needed.

        Raises:
            ValueError: they are not.
        """
        task = task_of_source(model).name
        if task not in cls.tasks:
            raise ValueError(
                f"{cls.option} is for {' and '.join(cls.tasks)} models, and {model.name} is made for {task}. "
                "Evaluate it by itself."
            )

    @abstractmethod
    def check(self, model: ModelSource) -> None:
        """Make sure that a model of the right kind fits the data, without its weights.

        Raises:
            ValueError: it does not.
        """

    @abstractmethod
    def settings(self, model: ModelSource) -> dict[str, Any]:
        """Everything but data, dtype and device that the figures depend on."""

    @abstractmethod
    def measure(self, source: ModelSource, model: PreTrainedModel, progress: ProgressOf) -> dict[str, Any]:
        """The figures by name, of a model that was checked, the same in all processes of a run, which share the work.

        Args:
            source: of the model.
            model: in memory, in evaluation mode.
            progress: told how far it is.
        """


def encoding_of(model: ModelSource, bos: str | None = None) -> dict[str, Any]:
    """How text became tokens, where the tokenizer of a causal model adds some; part of the settings of a figure.

    Args:
        model: of any kind.
        bos: of segments of text; None of what is asked or gone on from.
    """
    if task_of_source(model).name != "causal-lm":
        return {}
    before, behind = added_ids(model.tokenizer)
    opens = bos == "always" and bool(opening_ids(model.tokenizer, bos))
    begin = {"bos": opens} if opens or (before and bos == "never") else {}
    return {**begin, **({"end": "left out"} if behind else {})}


def check_context(length: int, model: ModelSource) -> None:
    """Make sure that a model can read so many tokens.

    Raises:
        ValueError: it cannot.
    """
    if model.context is not None and length > model.context:
        raise ValueError(
            f"--max-length is {length}, and {model.name} reads {model.context} tokens at most. Use "
            f"--max-length {model.context} or less."
        )


def check_largest(model: ModelSource, largest: int, what: str) -> None:
    """Make sure that a model has an embedding for the greatest token id of some text.

    Raises:
        ValueError: it has not.
    """
    if model.vocabulary is not None and largest >= model.vocabulary:
        raise ValueError(
            f"The tokenizer does not fit {model.name}: {what} has token {largest}, and the model knows "
            f"{model.vocabulary:,}. Name the right one with --tokenizer."
        )


def check_tokens(model: ModelSource, texts: Iterable[str], what: str) -> None:
    """Make sure that a model has an embedding for every token of some texts; they are tokenized only if it may not.

    Raises:
        ValueError: it has not.
    """
    if model.vocabulary is None or len(model.tokenizer) <= model.vocabulary:
        return
    for text in texts:
        check_largest(model, max(model.tokenizer(text)["input_ids"], default=0), what)
