"""Completions of prompts, greedy or sampled, for comparing models by reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.compat.renamed import renamed_keywords
from loraprune.data.encoding import encode_prompt, longest_input
from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.tasks.lm_eval import own_random_numbers
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.calibration.progress import Progress

DEFAULT_PROMPTS = (
    "The old lighthouse keeper opened the door and saw",
    "To make a good cup of tea, first",
    "The three most important causes of the war were",
    "Once there was a little girl who wanted to fly. One day,",
)
"""Beginnings of common text types: a story, directions, a list, a tale for children."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings of completions.

    Attributes:
        max_new_tokens: maximum number of new tokens; fewer if the model ends the text or its context is full.
        sample: draw each token instead of taking the most likely one.
        temperature: for sampling; below 1, likely tokens become more likely.
        top_p: for sampling: total probability of the most likely tokens to draw from; 1 uses all tokens.
        repetition_penalty: divisor for the logits of tokens that already occurred; 1 is no penalty.
        seed: for sampling; each prompt restarts from it, so completions do not depend on each other.

    Raises:
        ValueError: a value is out of range.
    """

    max_new_tokens: int = 64
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1, not {self.max_new_tokens}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"--temperature must be above 0, not {self.temperature}. Leave --sample out for greedy text."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, not {self.top_p}.")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"A repetition penalty must be above 0, not {self.repetition_penalty}; 1 is none.")


def read_prompts(given: Sequence[str]) -> list[str]:
    """Return typed prompts and the prompts of files: one per line, or separated by empty lines if the file has any.

    An argument is a file if it has the suffix of a text file or exists. Multi-line prompts keep their lines.

    Raises:
        ValueError: a file is missing or has no prompt, or a prompt is empty.
    """
    prompts: list[str] = []
    for text in given:
        path = Path(text)
        if not text.strip():
            raise ValueError("A prompt is empty. Write a few words for the model to continue.")
        if "\n" not in text and (path.suffix in _ENDINGS or _exists(path)):
            prompts += _from_file(path)
        else:
            prompts.append(text)
    return prompts


_ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a prompt can exceed the maximum length of a file name
        return False


def _from_file(path: Path) -> list[str]:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file of prompts. Name a text file, or write a prompt of several words.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"The file of prompts {path} cannot be read: {error.strerror}.") from error
    lines = [line.rstrip() for line in text.splitlines()]
    blocks = [block.strip("\n") for block in "\n".join(lines).strip("\n").split("\n\n")]
    prompts = [block for block in (blocks if len(blocks) > 1 else lines) if block.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts. Write one per line, or separate longer ones by empty lines.")
    return prompts


@renamed_keywords(told="progress")
@torch.no_grad()
def complete_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    writing: Writing | None = None,
    *,
    shared: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Complete each prompt, without repeating it. An encoder–decoder model writes its target for it.

    The caller's random state is neither used nor changed. A prompt that leaves no room for a new token is truncated at
    its beginning.

    Args:
        model: causal or encoder–decoder.
        tokenizer: tokenizer of the model.
        prompts: one or more.
        writing: settings; None is greedy decoding of 64 tokens.
        shared: divide the prompts among the processes of the run. All of them must call this with the same prompts.
        progress: called after every completion.

    Raises:
        ValueError: the tokenizer returns no token for a prompt.
    """
    how = writing or Writing()
    with eval_mode(model):
        return made_of_each(
            len(prompts),
            lambda number: _complete(model, tokenizer, prompts[number], how),
            shared=shared,
            progress=progress,
        )


def _complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, writing: Writing) -> str:
    encoder_decoder = model.config.is_encoder_decoder
    # An encoder reads the text with the tokenizer's end token. A decoder must continue text without an end token.
    token_ids = tokenizer(prompt, verbose=False)["input_ids"] if encoder_decoder else encode_prompt(tokenizer, prompt)
    if not token_ids:
        raise ValueError(f"The tokenizer makes no token of the prompt {prompt!r}.")
    ids, new_tokens = torch.tensor([token_ids], device=model.device), writing.max_new_tokens
    context = longest_input(model.config.get_text_config())
    if context and not encoder_decoder:
        # A long prompt is truncated, but keeps half of the context.
        ids = ids[:, -(context - min(new_tokens, context // 2)) :]
        new_tokens = min(new_tokens, context - ids.shape[1])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sampling: dict[str, Any] = {"temperature": writing.temperature, "top_p": writing.top_p, "top_k": 0}
    generator: Any = model
    with own_random_numbers(writing.seed):
        output = generator.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=writing.sample,
            num_beams=1,
            pad_token_id=pad,
            repetition_penalty=writing.repetition_penalty,
            **(sampling if writing.sample else {}),
        )
    text = tokenizer.decode(output[0, 0 if encoder_decoder else ids.shape[1] :], skip_special_tokens=True)
    return str(text)
