"""Tasks that are asked through a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import CHAT_TEMPLATE, byte_model
from tests.metrics.tasks.conftest import choice_items, write_items
from transformers import PreTrainedTokenizerBase

from loraprune.data.chat_prompt import chat_prompt
from loraprune.metrics.tasks import score_tasks

pytest.importorskip("lm_eval", reason="the extra 'evaluation' is not installed")


@pytest.mark.parametrize("system", [None, "Choose."])
def test_an_item_is_a_user_message_and_choices_begin_the_answer(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, system: str | None
) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    model, items = byte_model(max_position_embeddings=256), choice_items()
    written: list[Any] = [{**item, "query": chat_prompt(tokenizer, str(item["query"]), system)} for item in items]
    plain, by_hand = (write_items(tmp_path / name, rows) for name, rows in (("a.jsonl", items), ("b.jsonl", written)))
    (chat,) = score_tasks(model, tokenizer, [str(plain)], chat=True, system_prompt=system)
    (expected,) = score_tasks(model, tokenizer, [str(by_hand)])
    (without,) = score_tasks(model, tokenizer, [str(plain)])
    assert chat.values == expected.values
    assert chat.values != without.values


def test_examples_are_turns_of_the_conversation(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraprune.metrics.tasks.model import HarnessModel

    asked: list[list[str]] = []

    def remember(self: Any, history: list[dict[str, str]], **options: Any) -> str:
        asked.append([message["role"] for message in history])
        return "x"

    monkeypatch.setattr(HarnessModel, "apply_chat_template", remember)
    file = write_items(tmp_path / "a.jsonl", choice_items())
    score_tasks(byte_model(), tokenizer, [str(file)], num_fewshot=2, chat=True, limit=1)
    assert asked == [["user", "assistant"] * 2 + ["user"]]
