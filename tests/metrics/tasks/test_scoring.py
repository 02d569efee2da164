"""Scores through lm-eval against likelihoods computed directly."""

from __future__ import annotations

import copy
import csv
import json
import math
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tests.checkpoints import byte_model
from tests.metrics.tasks.conftest import CONTEXT, choice_items, context_items, write_items, write_subject
from tests.tasks.models import byte_tokenizer, tiny_t5
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from loraprune.metrics.tasks import check_tasks, load_task, score_task, score_tasks

pytest.importorskip("lm_eval", reason="the extra 'evaluation' is not installed")

SHARED = Path(__file__).parents[4] / "shared" / "data"


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Of the tokens of a continuation after a context, all in one go and nothing padded."""
    both = tokenizer(context + continuation)["input_ids"]
    given = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([both])).logits[0].double()
    logs = logits.log_softmax(-1)
    return float(sum(logs[place - 1, both[place]] for place in range(given, len(both))))


def share_right(predictions: Sequence[int], golds: Sequence[int]) -> float:
    return sum(guess == gold for guess, gold in zip(predictions, golds, strict=True)) / len(golds)


def best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def choice_accuracies(model: Any, tokenizer: Any, items: Sequence[dict[str, Any]]) -> tuple[float, float]:
    plain, normalized = [], []
    for item in items:
        logs = [log_likelihood(model, tokenizer, item["query"], " " + choice) for choice in item["choices"]]
        plain.append(best(logs))
        normalized.append(best([log / len(choice) for log, choice in zip(logs, item["choices"], strict=True)]))
    golds = [item["gold"] for item in items]
    return share_right(plain, golds), share_right(normalized, golds)


def test_accuracies_of_a_file_are_those_of_likelihoods_computed_directly(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    items = choice_items()
    acc, acc_norm = choice_accuracies(reader, tokenizer, items)
    assert acc != acc_norm, "the two must be told apart"
    (score,) = score_tasks(reader, tokenizer, [str(choices_file)])
    assert score.values["acc"] == acc
    assert score.values["acc_norm"] == acc_norm
    assert score.values["acc_stderr"] == pytest.approx(math.sqrt(acc * (1 - acc) / (len(items) - 1)))
    assert score.num_items == len(items)
    assert score.num_fewshot == 0
    assert score.chance == pytest.approx(sum(1 / len(item["choices"]) for item in items) / len(items))
    assert (score.num_truncated, score.num_not_finite) == (0, 0)


def test_winogrande_scores_the_same_continuation_after_each_context(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts_file: Path
) -> None:
    items = context_items()
    guesses = [
        best([log_likelihood(reader, tokenizer, context, f" {item['continuation']}") for context in contexts])
        for item in items
        if isinstance(contexts := item["context_options"], list)
    ]
    (score,) = score_tasks(reader, tokenizer, [str(contexts_file)])
    assert score.values["acc"] == share_right(guesses, [int(str(item["gold"])) for item in items])
    assert "acc_norm" not in score.values


def mmlu_prompt(folder: Path, subject: str, number: int, shots: int) -> tuple[str, int]:
    """The prompt of the harness' MMLU in our own words, and the number of the right answer."""

    def question(row: dict[str, str]) -> str:
        choices = "".join(f"\n{letter}. {row[f'choice{n}']}" for n, letter in enumerate("ABCD"))
        return f"{row['question'].strip()}{choices}\nAnswer:"

    rows = {}
    for split in ("dev", "test"):
        with (folder / f"{subject}_{split}.csv").open(encoding="utf-8", newline="") as file:
            rows[split] = list(csv.DictReader(file))
    examples = "".join(f"{question(row)} {'ABCD'[int(row['answer'])]}\n\n" for row in rows["dev"][:shots])
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    row = rows["test"][number]
    return head + examples + question(row), int(row["answer"])


@pytest.mark.parametrize("shots", [0, 2])
def test_mmlu_is_asked_as_the_harness_asks_it(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, shots: int
) -> None:
    path = write_subject(tmp_path, "old_birds")
    guesses, golds = [], []
    for number in range(7):
        prompt, gold = mmlu_prompt(tmp_path, "old_birds", number, shots)
        guesses.append(best([log_likelihood(reader, tokenizer, prompt, f" {letter}") for letter in "ABCD"]))
        golds.append(gold)
    (score,) = score_tasks(reader, tokenizer, [str(path)], num_fewshot=shots)
    assert score.values["acc"] == share_right(guesses, golds)
    assert score.num_fewshot == shots
    assert score.num_truncated == 0


def test_a_folder_of_mmlu_weighs_subjects_by_their_sizes(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_subject(tmp_path / "mmlu", "birds", tests=9)
    write_subject(tmp_path / "mmlu", "stones", tests=4)
    (score,) = score_tasks(reader, tokenizer, [str(tmp_path / "mmlu")], num_fewshot=1)
    assert score.name == "mmlu/"
    birds, stones = score.subtasks
    assert (birds.name, birds.num_items, stones.num_items, score.num_items) == ("birds", 9, 4, 13)
    assert score.values["acc"] == pytest.approx((9 * birds.values["acc"] + 4 * stones.values["acc"]) / 13)
    assert score.chance == pytest.approx(0.25)


Asked = list[tuple[str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Contexts and continuations that the model is asked for."""
    from loraprune.metrics.tasks.model import HarnessModel

    seen: Asked = []
    original = HarnessModel.loglikelihood

    def listening(self: Any, requests: Any, disable_tqdm: bool = False) -> Any:
        seen.extend(request.args for request in requests)
        return original(self, requests, disable_tqdm=disable_tqdm)

    monkeypatch.setattr(HarnessModel, "loglikelihood", listening)
    return seen


def test_braces_and_digits_in_a_text_are_nothing_special(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, asked: Asked
) -> None:
    items = [{"query": query, "choices": ["{{gold}}", "7"], "gold": 1} for query in ("{{query}} {% if", "12")]
    score_tasks(reader, tokenizer, [str(write_items(tmp_path / "a.jsonl", items))])
    assert asked == [
        ("{{query}} {% if", " {{gold}}"),
        ("{{query}} {% if", " 7"),
        ("12", " {{gold}}"),
        ("12", " 7"),
    ]


def test_examples_are_other_items_of_the_file_drawn_by_the_seed(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, asked: Asked
) -> None:
    items = choice_items(6)
    path = str(write_items(tmp_path / "a.jsonl", items))

    def contexts(seed: int) -> Asked:
        asked.clear()
        score_tasks(reader, tokenizer, [path], num_fewshot=2, seed=seed)
        return list(asked)

    first = contexts(0)
    answered = [
        f"{item['query']} {choices[int(str(item['gold']))]}"
        for item in items
        if isinstance(choices := item["choices"], list)
    ]
    for context, _ in first:
        *examples, query = context.split("\n\n")
        own = [str(item["query"]) for item in items].index(query)
        assert len(examples) == 2
        assert set(examples) <= set(answered) - {answered[own]}
    assert contexts(0) == first
    assert contexts(1) != first


def test_scores_do_not_depend_on_the_batch_size(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    task = load_task(check_tasks([str(choices_file)])[0])
    scores = [score_task(reader, tokenizer, task, batch_size=size) for size in (1, 7, "auto")]
    assert scores[0] == scores[1] == scores[2]


def test_batches_hold_about_as_many_tokens_as_they_may(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraprune.metrics.tasks import scoring

    monkeypatch.setattr(scoring, "_TOKENS_PER_BATCH", 400)
    shapes: list[tuple[int, int]] = []
    handle = reader.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    try:
        score_tasks(reader, tokenizer, [str(choices_file)])
    finally:
        handle.remove()
    assert all(rows * length <= 400 for rows, length in shapes)
    assert all((rows + 1) * (length + 1) > 400 for rows, length in shapes[:-1]), "and no fewer"
    assert len({rows for rows, _ in shapes[:-1]}) > 1, "short requests share larger batches"


def test_the_first_items_alone_can_be_scored(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    (score,) = score_tasks(reader, tokenizer, [str(choices_file)], limit=4)
    assert score.num_items == 4
    assert score.values["acc"] == choice_accuracies(reader, tokenizer, choice_items()[:4])[0]


def test_prompts_longer_than_the_context_lose_their_beginning_and_are_counted(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    small = byte_model(max_position_embeddings=64)
    (score,) = score_tasks(small, tokenizer, [str(write_subject(tmp_path, "birds"))])
    assert score.num_fewshot == 5
    assert score.num_truncated == score.num_requests == 28


def test_of_a_choice_longer_than_the_context_the_end_is_scored(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    small = byte_model(max_position_embeddings=32)
    choices = ["a bird in the mill " * 5, "stones over the near old river " * 4]
    path = write_items(tmp_path / "a.jsonl", [{"query": "Look:", "choices": choices, "gold": 0}] * 2)
    ends = [f"Look: {choice.strip()}"[-33:] for choice in choices]
    logs = [log_likelihood(small, tokenizer, end[0], end[1:]) for end in ends]
    (score,) = score_tasks(small, tokenizer, [str(path)])
    assert score.values["acc"] == float(best(logs) == 0)
    assert score.num_truncated == 4


def test_a_length_beyond_the_context_is_refused(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    with pytest.raises(ValueError, match=f"--max-length is 600, and the model reads {CONTEXT} tokens at most"):
        score_tasks(reader, tokenizer, [str(choices_file)], max_length=600)
    (score,) = score_tasks(reader, tokenizer, [str(choices_file)], max_length=20)
    assert score.num_truncated


def test_a_model_that_gives_nan_has_no_score(tokenizer: PreTrainedTokenizerBase, choices_file: Path) -> None:
    broken = byte_model(max_position_embeddings=CONTEXT)
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = math.nan
    (score,) = score_tasks(broken, tokenizer, [str(choices_file)])
    assert score.num_not_finite == score.num_requests
    assert math.isnan(score.values["acc"])


def test_batches_are_halved_until_memory_suffices(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    sizes: list[int] = []

    def run_out(module: Any, args: Any) -> None:
        sizes.append(args[0].shape[0])
        if args[0].shape[0] > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    task = load_task(check_tasks([str(choices_file)])[0])
    expected = score_task(reader, tokenizer, task)
    handle = reader.register_forward_pre_hook(run_out)
    try:
        assert score_task(reader, tokenizer, task) == expected
        assert sizes[0] > 8 >= sizes[-1]
        with pytest.raises(ValueError, match="a batch of 9 does not fit into memory"):
            score_task(reader, tokenizer, task, batch_size=9)
    finally:
        handle.remove()


def test_other_errors_of_a_model_are_not_taken_for_want_of_memory(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("shapes do not match")

    handle = reader.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="shapes do not match"):
            score_tasks(reader, tokenizer, [str(choices_file)])
    finally:
        handle.remove()


def test_files_need_no_network_and_print_and_leave_nothing(
    reader: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    progress: list[tuple[str, int, int]] = []
    score_tasks(reader, tokenizer, [str(choices_file)], progress=lambda *step: progress.append(step))
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    requests = sum(len(choices) for item in choice_items() if isinstance(choices := item["choices"], list))
    assert progress[-1] == ("choices.jsonl requests", requests, requests)


def seed_all(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def draw_all() -> tuple[float, float, float]:
    return random.random(), numpy.random.rand(), torch.rand(()).item()


def test_random_numbers_tokenizer_and_mode_of_the_model_stay_as_they_were(
    reader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices_file: Path
) -> None:
    model, before = copy.deepcopy(reader).train(), copy.deepcopy(tokenizer)
    seed_all(3)
    expected = draw_all()
    seed_all(3)
    score_tasks(model, tokenizer, [str(choices_file)], num_fewshot=1)
    assert draw_all() == expected
    assert model.training
    assert tokenizer.pad_token is None
    assert tokenizer.model_max_length == before.model_max_length


def test_an_encoder_decoder_model_reads_the_query_and_is_scored_on_its_decoder(tmp_path: Path) -> None:
    model, tokenizer, items = tiny_t5(), byte_tokenizer(), choice_items(8)

    def log(query: str, choice: str) -> float:
        ids = torch.tensor([tokenizer(query)["input_ids"]])
        labels = torch.tensor([tokenizer(choice, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            return -model(input_ids=ids, labels=labels).loss.item() * labels.shape[1]

    guesses = [
        best([log(str(item["query"]), f" {choice}") for choice in choices])
        for item in items
        if isinstance(choices := item["choices"], list)
    ]
    (score,) = score_tasks(model, tokenizer, [str(write_items(tmp_path / "a.jsonl", items))])
    assert score.values["acc"] == share_right(guesses, [int(str(item["gold"])) for item in items])


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A task of the harness whose data is on the hub."""
    from lm_eval.tasks import TaskManager

    from loraprune.metrics.tasks import choosing, scoring

    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: hub/far\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: query\n"
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\nmetadata: {version: 3.0}\n",
        encoding="utf-8",
    )
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(choosing, "harness_index", lambda: manager.task_index)
    monkeypatch.setattr(scoring, "harness_tasks", lambda: manager)


@pytest.mark.usefixtures("answering_hub", "far")
def test_data_that_cannot_be_fetched_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'hub/far' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    (chosen,) = check_tasks(["far"])
    assert chosen.data == {"harness": "lm-eval", "dataset": "hub/far", "version": 3.0}
    with pytest.raises(ValueError, match=r"The task far cannot be loaded: Couldn't reach 'hub/far'.*name a local file"):
        load_task(chosen)


@pytest.mark.usefixtures("far")
def test_a_task_of_the_harness_is_known_by_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def data(first: int) -> Mapping[str, Any]:
        rows = datasets.Dataset.from_list(choice_items()[first:10])
        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: datasets.DatasetDict({"test": rows}))
        return load_task(check_tasks(["far"])[0]).data

    assert data(0) == data(0)
    assert data(0)["sha256"] != data(1)["sha256"]
    assert data(0)["version"] == 3.0


@pytest.mark.slow
def test_a_task_of_the_harness_scores_like_a_file_with_the_same_questions(
    reader: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    items = choice_items()
    rows = [
        {"goal": item["query"], "sol1": choices[0], "sol2": choices[1], "label": int(str(item["gold"])) % 2}
        for item in items
        if isinstance(choices := item["choices"], list)
    ]
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in ("train", "validation")})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: data)
    same = [
        {"query": f"Question: {row['goal']}\nAnswer:", "choices": [row["sol1"], row["sol2"]], "gold": row["label"]}
        for row in rows
    ]
    piqa, local = score_tasks(reader, tokenizer, ["piqa", str(write_items(tmp_path / "piqa.jsonl", same))])
    assert piqa.values == local.values
    assert piqa.num_items == 20


def real(name: str) -> Callable[[], Path]:
    def found() -> Path:
        if not (SHARED / "models" / "stories260K").is_dir():
            pytest.skip("the folder of real models and tasks is not there")
        return SHARED / "tasks" / name

    return found


@pytest.mark.parametrize("name", ["arc_easy.jsonl", "openbook_qa.jsonl"])
def test_real_items_on_a_trained_model_score_as_computed_directly(name: str) -> None:
    path = real(name)()
    folder = SHARED / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:20]]
    acc, acc_norm = choice_accuracies(model, tokenizer, items)
    (score,) = score_tasks(model, tokenizer, [str(path)], limit=20)
    assert score.values["acc"] == acc
    assert score.values["acc_norm"] == acc_norm
