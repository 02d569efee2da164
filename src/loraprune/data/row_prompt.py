"""A text before every row, which the model reads and is not trained to write."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from loraprune.data.tokenize import IGNORED_LABEL, EncodedRow, opening_ids, tokenize


@dataclass(frozen=True, kw_only=True)
class RowPrompt:
    """A prompt as tokens.

    Attributes:
        prompt: token ids.
        opening: what the tokenizer opens a sequence with; in rows that have it, it stays in front.
    """

    prompt: list[int]
    opening: list[int]

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> RowPrompt:
        """Tokenize a prompt; an empty line parts it from the row.

        Raises:
            ValueError: it leaves no room for a row.
        """
        (prompt,) = tokenize(tokenizer, [f"{text.strip()}\n\n"])
        if max_length - len(prompt) < 2:
            raise ValueError(
                f"The prompt before each row takes {len(prompt)} of {max_length} tokens (--max-length), which leaves "
                "nothing to predict. Shorten it, or allow longer rows."
            )
        return cls(prompt=prompt, opening=opening_ids(tokenizer))

    def before(self, row: EncodedRow) -> EncodedRow:
        """Put the prompt before a row."""
        split = len(self.opening) if row.input_ids[: len(self.opening)] == self.opening else 0
        prompt = EncodedRow(input_ids=self.prompt, labels=[IGNORED_LABEL] * len(self.prompt))
        # What follows the prompt was the row's first token, which nothing predicts; it stays so.
        return _untrained(row[:split]) + prompt + row[split:] if split else prompt + _first_untrained(row)


def _untrained(row: EncodedRow) -> EncodedRow:
    return EncodedRow(input_ids=row.input_ids, labels=[IGNORED_LABEL] * len(row))


def _first_untrained(row: EncodedRow) -> EncodedRow:
    return _untrained(row[:1]) + row[1:]
