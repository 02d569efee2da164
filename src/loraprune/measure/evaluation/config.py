"""Configuration of an evaluation: data and conditions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.data.encoding import BOS_CHOICES
from loraprune.data.renaming import renames
from loraprune.options.field import SEEDS, check_choice, check_fields, setting
from loraprune.options.precision import DTYPE_NAMES

if TYPE_CHECKING:
    from loraprune.data.named import Data

DEFAULT_TEXT = "wikitext2"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Data and conditions of an evaluation.

    Attributes:
        ppl: texts to measure perplexity on: ``wikitext2``, ``ptb``, ``c4``, ``demo``, files, and ``NAME=FILE``. If
            nothing is requested, causal language models are measured on WikiText-2, and the bundled model on ``demo``.
        tasks: names of lm-eval's tasks, ``commonsense`` (the seven of the LoRAPrune paper), or files of items.
        prompts: texts to complete, or files of them; None completes nothing, and an empty tuple uses our own prompts.
        data: labeled images or texts, or pairs of source and target: files, folders or Hub datasets, by name.
        split: split of ``data``, for a folder or a Hub dataset; ``data_name``: configuration of a Hub dataset.
        columns: new names of columns of ``data``: ``"text=review,label=stars"``.
        max_length: tokens of a segment, of a task's request and of a row; None is 2048 or the smallest context of the
            models for perplexity, and each model's own context for the others.
        bos: texts that start with the beginning-of-sequence token. ``auto``: a text, if the tokenizer adds the token
            itself; ``always``: each segment of it; ``never``: none.
        stride: tokens between the starts of two segments; None is the segment's length.
        batch_size: rows per batch; None finds a size that fits.
        limit: maximum number of segments, items of a task, and rows to measure.
        num_fewshot: examples before an item; None uses the task's own number.
        apply_chat_template: write tasks and prompts as user messages with each model's own chat template; examples of
            tasks become turns of the conversation.
        system_prompt: content of a system message before those.
        max_new_tokens: maximum number of new tokens per prompt.
        sample: draw the tokens of completions, instead of taking the most likely ones.
        temperature: temperature of drawn tokens; ``top_p``: total probability of the tokens to draw from.
        seed: seed of everything that is drawn.
        dtype: dtype to compute in: float32, bfloat16 or float16; None is the checkpoint's own, and float32 on a CPU.
        device: such as ``cuda:0``; None is the first accelerator, or the CPU.
        output: file of the results; None keeps none.
        force: measure again even if the file has the result.
        tokenizer: checkpoint to take the tokenizer from; None is each model's own.
        base: base of an adapter, in place of the one that it names.
        trust_remote_code: run code that comes with a checkpoint.
        revision: revision of Hub checkpoints.
    """

    ppl: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None
    data: Data | None = None
    split: str = "validation"
    data_name: str | None = None
    columns: str | None = None
    max_length: int | None = setting(None, within="[2, inf)")
    bos: str = "auto"
    stride: int | None = setting(None, within="[1, inf)")
    batch_size: int | None = setting(None, within="[1, inf)")
    limit: int | None = setting(None, within="[1, inf)")
    num_fewshot: int | None = setting(None, within="[0, inf)")
    apply_chat_template: bool = False
    system_prompt: str | None = None
    max_new_tokens: int = 64
    sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = setting(42, within=SEEDS)
    dtype: str | None = None
    device: str | None = None
    output: Path | None = None
    force: bool = False
    tokenizer: str | None = None
    base: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("ppl", "tasks", "prompts"):
            value = getattr(self, name)
            if isinstance(value, (str, Path)):
                raise TypeError(f"{name} is {value!r}; give a tuple of texts, such as ({str(value)!r},).")
            if value is not None:
                object.__setattr__(self, name, tuple(str(item) for item in value))
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output).expanduser())
            if self.output.is_dir():
                raise ValueError(f"The output {self.output} is a folder; results are kept in a file. Name one in it.")
        check_choice("bos", self.bos, BOS_CHOICES)
        check_fields(self)
        self._check_stride()
        renames(self.columns)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPE_NAMES)
        self._check_sampling()
        self._check_chat()

    def _check_stride(self) -> None:
        if self.stride is not None and self.max_length is not None and self.stride >= self.max_length:
            raise ValueError(
                f"--stride is {self.stride}, and --max-length is {self.max_length}; the stride must be below the "
                "length. Leave it out for segments that do not overlap."
            )

    def _check_sampling(self) -> None:
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if value is not None and not self.sample:
                raise ValueError(f"{_flag(name)} is for sampled completions. Add --sample, or leave it out.")

    def _check_chat(self) -> None:
        if self.system_prompt is not None and not self.apply_chat_template:
            raise ValueError("--system-prompt needs a chat template. Add --apply-chat-template.")
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ValueError("The system prompt is empty. Write one, or leave --system-prompt out.")
        if self.apply_chat_template and not self.tasks and self.prompts is None:
            raise ValueError("--apply-chat-template is for tasks and completions. Add --tasks or --prompts.")

    @property
    def chat_settings(self) -> dict[str, Any]:
        """Settings that a figure depends on if a chat template writes the prompts."""
        system = {} if self.system_prompt is None else {"system_prompt": self.system_prompt}
        return {"chat_template": True, **system} if self.apply_chat_template else {}

    @property
    def asks_for_nothing(self) -> bool:
        """Whether no measure is requested and the default applies."""
        return not self.ppl and not self.tasks and self.prompts is None and self.data is None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
