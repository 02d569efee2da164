"""Tasks with tokenizers that add tokens to a text by themselves, and items whose choices tie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import EOS, tiny_tokenizer
from tests.metrics.tasks.conftest import choice_items, context_items, write_items
from transformers import PreTrainedModel

from loraprune.metrics.tasks import score_tasks

pytest.importorskip("lm_eval", reason="the extra 'evaluation' is not installed")

PAIRS = [("$A </s>", "$A"), ("<s> $A </s>", "<s> $A"), ("<s> $A </s> </s>", "<s> $A")]
"""What a tokenizer adds, and what is left of it."""


def values(model: PreTrainedModel, path: Path, adds: str) -> dict[str, Any]:
    (score,) = score_tasks(model, tiny_tokenizer(adds=adds), [str(path)])
    return score.to_values()


@pytest.mark.parametrize(("adds", "as_if"), PAIRS)
@pytest.mark.parametrize("items", [choice_items(12), context_items(12)], ids=["choices", "contexts"])
def test_an_end_that_the_tokenizer_adds_changes_no_score(
    reader: PreTrainedModel, tmp_path: Path, items: list[dict[str, object]], adds: str, as_if: str
) -> None:
    path = write_items(tmp_path / "items.jsonl", items)
    assert values(reader, path, adds) == values(reader, path, as_if)


@pytest.mark.parametrize("adds", ["$A </s>", "<s> $A </s>", "<s> $A", "$A"])
def test_answers_of_one_token_are_scored_wherever_the_right_one_stands(
    reader: PreTrainedModel, tmp_path: Path, adds: str
) -> None:
    queries = [f"{number} and then " for number in range(8)]
    tokenizer = tiny_tokenizer(adds=adds.removesuffix(" </s>"))
    letters = {letter: tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "abcd"}
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    for turn in range(4):
        items = []
        for query in queries:
            with torch.no_grad():
                logits = reader(torch.tensor([tokenizer(query.rstrip())["input_ids"] + space])).logits[0, -1]
            best = max(letters, key=lambda letter: float(logits[letters[letter]]))
            choices = [letter for letter in letters if letter != best]
            choices.insert(turn, best)
            items.append({"query": query, "choices": choices, "gold": turn})
        found = values(reader, write_items(tmp_path / f"{turn}.jsonl", items), adds)
        assert (found["acc"], found["num_tied"]) == (1.0, 0)


def test_ties_are_counted_and_the_first_choice_wins_them(reader: PreTrainedModel, tmp_path: Path) -> None:
    items = [{"query": "one or", "choices": ["two", "two", "x" * 90], "gold": 1} for _ in range(3)]
    items += [{"query": "one or", "choices": ["two", "x" * 90, "x" * 90], "gold": 0}]
    found = values(reader, write_items(tmp_path / "ties.jsonl", items), "$A")
    assert (found["acc"], found["num_tied"], found["num_items"]) == (0.25, 3, 4)


@pytest.mark.parametrize(("adds", "as_if"), [*PAIRS, ("$A", "$A"), ("<s> $A", "<s> $A")])
def test_texts_are_gone_on_from_before_their_end(reader: PreTrainedModel, adds: str, as_if: str) -> None:
    from lm_eval.api.instance import Instance

    from loraprune.metrics.tasks.model import HarnessModel

    contexts = ["the old river", "a", "<s>stones and"]
    scorer = HarnessModel(reader, tiny_tokenizer(adds=adds), tokens_per_batch=512, batch_size=3)
    asked = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False}
    found = scorer.generate_until(
        [Instance("generate_until", {}, (text, asked), number) for number, text in enumerate(contexts)]
    )
    for text, answer in zip(contexts, found, strict=True):
        bare = text.startswith("<s>")
        ids = tiny_tokenizer(adds=as_if)(text, add_special_tokens=not bare, return_tensors="pt")["input_ids"]
        new = reader.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=EOS)[0, ids.shape[1] :]
        assert answer == tiny_tokenizer().decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("adds", ["$A </s>", "<s> $A </s>", "<s> $A"])
def test_of_whole_texts_what_is_added_is_not_scored(reader: PreTrainedModel, adds: str) -> None:
    from lm_eval.api.instance import Instance

    from loraprune.metrics.tasks.model import HarnessModel

    request = Instance("loglikelihood_rolling", {}, ("the old river runs",), 0)
    found, expected = (
        HarnessModel(reader, tiny_tokenizer(adds=add), tokens_per_batch=512).loglikelihood_rolling([request])
        for add in (adds, "$A")
    )
    assert found == pytest.approx(expected)
