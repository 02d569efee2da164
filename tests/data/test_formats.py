from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.data.conftest import MakeTokenizer
from tests.data.test_chat import CHAT, CHATML, MARKED
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from loraprune.data.formats import DataFormat, PreparedRows, prepare_dataset
from loraprune.data.sources import load_source
from loraprune.data.tokenize import instruction_prompt

ANSWERS = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "say aloud: ", "completion": "a longer one"}]


def trained_texts(prepared: PreparedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each row trains on, by way of trl's collator."""
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(list(prepared.dataset))
    ids, labels = batch["input_ids"], batch["labels"]
    assert torch.all((labels == -100) | (labels == ids))
    return [tokenizer.decode(row[row != -100]) for row in labels]


def texts(prepared: PreparedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(row) for row in prepared.dataset["input_ids"]]


class TestText:
    def test_documents_are_joined_by_the_end_token_and_cut_in_full_blocks(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        dataset = Dataset.from_dict({"text": ["one", "two", "three"]})
        prepared = prepare_dataset(dataset, tokenizer, max_length=5)
        assert texts(prepared, tokenizer) == ["one</s>t", "wo</s>th"]
        assert prepared.dataset.column_names == ["input_ids"]
        assert prepared.facts["format"] == DataFormat.TEXT.value
        assert (prepared.facts["tokens"], prepared.facts["trained_tokens"]) == (10, 8)

    def test_text_shorter_than_a_block_is_kept(self, tokenizer: PreTrainedTokenizerBase) -> None:
        prepared = prepare_dataset(Dataset.from_dict({"text": ["one"]}), tokenizer, max_length=100)
        assert texts(prepared, tokenizer) == ["one</s>"]

    def test_documents_can_stay_apart(self, make_tokenizer: MakeTokenizer) -> None:
        tokenizer = make_tokenizer(adds_bos=True)
        dataset = Dataset.from_dict({"text": ["one", "two and more"]})
        prepared = prepare_dataset(dataset, tokenizer, max_length=6, packing=False)
        assert texts(prepared, tokenizer) == ["<s>one</s>", "<s>two an"]
        assert prepared.facts["truncated_rows"] == 1

    def test_a_tokenizer_without_special_tokens_joins_directly(self, make_tokenizer: MakeTokenizer) -> None:
        dataset = Dataset.from_dict({"text": ["one", "two"]})
        prepared = prepare_dataset(dataset, make_tokenizer(eos=False), max_length=6)
        assert texts(prepared, make_tokenizer()) == ["onetwo"]

    def test_rows_without_text_are_skipped(self, tokenizer: PreTrainedTokenizerBase) -> None:
        dataset = Dataset.from_dict({"text": [None, "one", " \n", ""]})
        prepared = prepare_dataset(dataset, tokenizer, max_length=100)
        assert texts(prepared, tokenizer) == ["one</s>"]
        assert prepared.facts["empty_rows"] == 3

    def test_data_without_text_is_refused(self, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ValueError, match="all rows are empty"):
            prepare_dataset(Dataset.from_dict({"text": ["", None]}), tokenizer, max_length=8)

    def test_text_of_one_token_is_refused(self, make_tokenizer: MakeTokenizer) -> None:
        with pytest.raises(ValueError, match="no row has two tokens"):
            prepare_dataset(Dataset.from_dict({"text": ["x"]}), make_tokenizer(eos=False), max_length=8)

    def test_values_that_are_no_text_are_refused(self, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ValueError, match="Row 1: the column 'text' holds a int"):
            prepare_dataset(Dataset.from_dict({"text": [1, 2]}), tokenizer, max_length=8)


class TestAnswers:
    def test_the_completion_and_its_end_are_trained(self, tokenizer: PreTrainedTokenizerBase) -> None:
        prepared = prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=100)
        assert texts(prepared, tokenizer) == ["2+2=4</s>", "say aloud: a longer one</s>"]
        assert trained_texts(prepared, tokenizer) == ["4</s>", " a longer one</s>"]  # " a" is one token
        assert prepared.facts["trained_tokens"] == sum(
            label != -100 for row in prepared.dataset["labels"] for label in row
        )
        assert prepared.facts["tokens"] == sum(map(len, prepared.dataset["input_ids"]))

    def test_all_tokens_are_trained_on_request(self, tokenizer: PreTrainedTokenizerBase) -> None:
        prepared = prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=100, answers_only=False)
        assert prepared.dataset.column_names == ["input_ids"]
        assert (
            trained_texts(prepared, tokenizer)
            == texts(prepared, tokenizer)
            == [
                "2+2=4</s>",
                "say aloud: a longer one</s>",
            ]
        )
        assert prepared.facts["trained_tokens"] == prepared.facts["tokens"] - 2

    def test_only_the_output_of_an_instruction_is_trained(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [
            {"instruction": "Add.", "input": "2 2", "output": "4"},
            {"instruction": "Go", "input": "", "output": "x y"},
        ]
        prepared = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=100)
        assert trained_texts(prepared, tokenizer) == ["4</s>", "x y</s>"]
        assert texts(prepared, tokenizer)[0] == instruction_prompt("Add.", "2 2") + "4</s>"
        assert prepared.facts["format"] == DataFormat.INSTRUCTION.value

    def test_long_rows_lose_their_right_end(self, tokenizer: PreTrainedTokenizerBase) -> None:
        prepared = prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=12)
        assert trained_texts(prepared, tokenizer) == ["4</s>", " a l"]
        assert [len(row) for row in prepared.dataset["input_ids"]] == [6, 12]
        assert (prepared.facts["truncated_rows"], prepared.facts["dropped_rows"]) == (1, 0)

    def test_rows_that_lost_their_answer_are_dropped(self, tokenizer: PreTrainedTokenizerBase) -> None:
        prepared = prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=8)
        assert texts(prepared, tokenizer) == ["2+2=4</s>"]
        assert (prepared.facts["truncated_rows"], prepared.facts["dropped_rows"]) == (0, 1)

    def test_rows_without_an_answer_are_skipped(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [*ANSWERS, {"prompt": "x", "completion": None}, {"prompt": "x", "completion": " "}]
        prepared = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=100)
        assert (len(prepared.dataset), prepared.facts["empty_rows"]) == (2, 2)

    def test_data_whose_answers_are_all_cut_off_is_refused(self, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ValueError, match=r"Every answer is masked out.* 2 rows .*--max-length.*--no-answers-only"):
            prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=4)

    def test_the_first_token_of_a_row_is_no_answer(self, make_tokenizer: MakeTokenizer) -> None:
        dataset = Dataset.from_list([{"prompt": "", "completion": "x"}])
        with pytest.raises(ValueError, match="Every answer is masked out"):
            prepare_dataset(dataset, make_tokenizer(eos=False), max_length=8)

    def test_whole_rows_are_packed_on_request(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [{"prompt": "q", "completion": answer} for answer in ("one", "two", "three")]
        prepared = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=11, packing=True)
        assert texts(prepared, tokenizer) == ["qone</s>qtwo</s>", "qthree</s>"]
        assert trained_texts(prepared, tokenizer) == ["one</s>two</s>", "three</s>"]


class TestMessages:
    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            (CHATML, "first answer<|im_end|>\nsecond answer<|im_end|>\n"),
            (MARKED, " first answer  second answer "),
        ],
    )
    def test_only_the_turns_of_the_assistant_are_trained(
        self, make_tokenizer: MakeTokenizer, template: str, expected: str
    ) -> None:
        tokenizer = make_tokenizer(chat_template=template)
        prepared = prepare_dataset(Dataset.from_dict({"messages": [CHAT]}), tokenizer, max_length=200)
        assert trained_texts(prepared, tokenizer) == [expected]
        assert prepared.facts["format"] == DataFormat.MESSAGES.value

    def test_the_tokens_are_those_of_the_chat_template(self, make_tokenizer: MakeTokenizer) -> None:
        tokenizer = make_tokenizer(adds_bos=True, chat_template=CHATML)
        prepared = prepare_dataset(Dataset.from_dict({"messages": [CHAT]}), tokenizer, max_length=200)
        assert prepared.dataset["input_ids"][0] == tokenizer.apply_chat_template(CHAT)["input_ids"]

    def test_sharegpt_conversations_are_the_same_as_messages(self, make_tokenizer: MakeTokenizer) -> None:
        tokenizer = make_tokenizer(chat_template=CHATML)
        names = {"user": "human", "assistant": "gpt"}
        turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in CHAT]
        given = prepare_dataset(Dataset.from_dict({"conversations": [turns]}), tokenizer, max_length=200)
        expected = prepare_dataset(Dataset.from_dict({"messages": [CHAT]}), tokenizer, max_length=200)
        assert given.dataset.to_list() == expected.dataset.to_list()

    def test_conversations_without_an_answer_are_dropped(self, make_tokenizer: MakeTokenizer) -> None:
        dataset = Dataset.from_dict({"messages": [CHAT, CHAT[:1], []]})
        prepared = prepare_dataset(dataset, make_tokenizer(chat_template=CHATML), max_length=200)
        assert (len(prepared.dataset), prepared.facts["dropped_rows"], prepared.facts["empty_rows"]) == (1, 0, 2)

    def test_a_malformed_turn_is_refused_with_its_row(self, make_tokenizer: MakeTokenizer) -> None:
        dataset = Dataset.from_dict({"messages": [CHAT, [{"role": "user", "content": None}]]})
        with pytest.raises(ValueError, match="Row 2, message 1 has no 'content'"):
            prepare_dataset(dataset, make_tokenizer(chat_template=CHATML), max_length=200)

    def test_a_tokenizer_without_chat_template_is_refused(self, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(ValueError, match="the tokenizer has no chat template"):
            prepare_dataset(Dataset.from_dict({"messages": [CHAT]}), tokenizer, max_length=200)


@pytest.mark.parametrize("max_length", [1, 0, -4])
def test_a_maximal_length_below_two_is_refused(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length={max_length} "):
        prepare_dataset(Dataset.from_dict({"text": ["one"]}), tokenizer, max_length=max_length)


def test_columns_that_are_not_understood_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="columns sentence, which match no known format"):
        prepare_dataset(Dataset.from_dict({"sentence": ["one"]}), tokenizer, max_length=8)


def test_equal_data_is_prepared_equally_and_left_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = Dataset.from_list(ANSWERS).with_format("pandas")
    first, second = (prepare_dataset(dataset, tokenizer, max_length=100) for _ in range(2))
    assert first.dataset.to_list() == second.dataset.to_list()
    assert dataset.with_format(None).to_list() == ANSWERS


@pytest.mark.parametrize("answers_only", [True, False])
def test_the_trainer_takes_the_data_as_it_is(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, answers_only: bool
) -> None:
    prepared = prepare_dataset(Dataset.from_list(ANSWERS), tokenizer, max_length=100, answers_only=answers_only)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    config = SFTConfig(
        output_dir=str(tmp_path), max_length=None, packing=False, use_cpu=True, bf16=False, report_to="none"
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=prepared.dataset, processing_class=tokenizer)
    batch: dict[str, Any] = next(iter(trainer.get_train_dataloader()))
    trained = {tokenizer.decode(row[row != -100]) for row in batch["labels"]}
    assert trained == set(trained_texts(prepared, tokenizer))
    assert int((batch["labels"][:, 1:] != -100).sum()) == prepared.facts["trained_tokens"]


class TestRealData:
    def test_alpaca_trains_on_its_outputs(self, shared_data: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")
        rows = load_source(str(shared_data / "instruct" / "alpaca_1k.json")).filter(lambda row: row["output"].isascii())
        prepared = prepare_dataset(rows, tokenizer, max_length=4096)
        assert prepared.facts["truncated_rows"] == 0
        filled = [row["output"] for row in rows if row["output"].strip()]
        assert len(prepared.dataset) == len(filled)
        assert prepared.facts["empty_rows"] == len(rows) - len(filled)
        for output, row in zip(filled, prepared.dataset, strict=True):
            *answer, end = [label for label in row["labels"] if label != -100]
            assert end == tokenizer.eos_token_id
            assert tokenizer.decode(answer).strip() == output.strip()

    def test_stories_fill_blocks(self, shared_data: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")
        stories = load_source(str(shared_data / "text" / "tinystories_train.jsonl")).select(range(200))
        prepared = prepare_dataset(stories, tokenizer, max_length=128)
        assert {len(row) for row in prepared.dataset["input_ids"]} == {128}
        joined = [token for row in prepared.dataset["input_ids"] for token in row]
        story = tokenizer(stories[0]["text"], add_special_tokens=False)["input_ids"]
        assert joined[: len(story) + 2] == [tokenizer.bos_token_id, *story, tokenizer.eos_token_id]
        assert 190 <= joined.count(tokenizer.eos_token_id) <= 200
