"""A prompt as a user message, rendered by the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Which question is this?"


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, system_prompt: str | None = None) -> str:
    """Return the text that a chat model answers: the system message, the prompt, and the start of the answer.

    Args:
        tokenizer: tokenizer with a chat template.
        prompt: content of the user message.
        system_prompt: content of the system message; None writes none.
    """
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    messages = [*system, {"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def check_chat_template(tokenizer: PreTrainedTokenizerBase, name: str, system_prompt: str | None = None) -> None:
    """Check that a tokenizer has a chat template that writes a prompt, and the system prompt if there is one.

    Args:
        tokenizer: tokenizer of the model.
        name: name of the model, for messages.
        system_prompt: system prompt, or None.

    Raises:
        ValueError: there is no chat template, or it does not write the prompts.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"--apply-chat-template needs a chat template, but the tokenizer of {name} has none. Leave the option out, "
            "or pass a checkpoint that has one with --tokenizer."
        )
    try:
        written = chat_prompt(tokenizer, _PROBE, system_prompt)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"The chat template of {name} cannot write the prompt: {' '.join(str(error).split())}"
        ) from error
    if system_prompt is not None and system_prompt.strip() not in written:
        raise ValueError(f"The chat template of {name} does not write a system prompt. Leave --system-prompt out.")
