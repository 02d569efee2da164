"""What tests measure in one process and in several; all of it as plain values, which have to be the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.checkpoints import CONTEXT, VOCABULARY, byte_model, sentences, tiny_tokenizer
from tests.metrics.tasks.conftest import choice_items, context_items, write_items
from tests.models import randomize_
from tests.tasks.models import byte_tokenizer, opinions, reversals, tiny_bert, tiny_t5, word_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig

from loraprune import EvaluationConfig, evaluate
from loraprune.metrics.tasks import check_tasks, load_task, score_task
from loraprune.processes.ranks import is_main
from loraprune.recipes.compare_criteria import ComparisonConfig, compare_criteria


def prepare(folder: Path) -> None:
    """Write what is measured on, and models of other kinds."""
    folder.mkdir()
    (folder / "notes.txt").write_text("\n".join(sentences(20)))
    write_items(folder / "choices.jsonl", choice_items(80))
    write_items(folder / "contexts.jsonl", context_items(5))
    for name, model, tokenizer, rows in (
        ("mixture", mixture(), tiny_tokenizer(), None),
        ("bert", tiny_bert(), word_tokenizer(), opinions(70)),
        ("t5", tiny_t5(), byte_tokenizer(), reversals(40)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if rows is not None:
            rows.to_json(folder / f"{name}.jsonl")


def mixture() -> Any:
    """A causal model with 8 experts a block, two for each token."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    model = AutoModelForCausalLM.from_config(
        MixtralConfig(vocab_size=VOCABULARY, num_local_experts=8, **sizes, **heads)
    )
    randomize_(model, 0)
    return model


def _values(model: str | Path, **config: Any) -> list[Any]:
    return [entry.values for entry in evaluate(model, EvaluationConfig(**config)).entries]


def _everything(model: str, folder: Path, **further: Any) -> list[Any]:
    files = {"ppl": (str(folder / "notes.txt"),), "tasks": tuple(map(str, folder.glob("ch*.jsonl")))}
    drawn = {"prompts": ("the old", "birds", "near"), "sample": True, "max_new_tokens": 6}
    return _values(model, **files, **drawn, max_length=32, batch_size=2, num_fewshot=1, **further)


def everything(model: str, folder: Path, processes: int) -> Any:
    """Perplexity, a task and drawn completions of a causal model."""
    return _everything(model, folder)


def one_of_each(model: str, folder: Path, processes: int) -> Any:
    """Fewer segments and items than processes."""
    return _everything(model, folder, limit=1)


def batches_by_tokens(model: str, folder: Path, processes: int) -> Any:
    """Tasks whose batches are as large as memory allows."""
    return _values(model, tasks=(str(folder / "choices.jsonl"), str(folder / "contexts.jsonl")))


def rows(model: str, folder: Path, processes: int) -> Any:
    """A classifier, and pairs of source and target."""
    return [_values(folder / name, data=str(folder / f"{name}.jsonl")) for name in ("bert", "t5")]


def texts_of_the_harness(model: str, folder: Path, processes: int) -> Any:
    """Answers that a model draws, and likelihoods of whole texts, as tasks of lm-eval ask for them."""
    from lm_eval.api.instance import Instance

    from loraprune.metrics.tasks.model import HarnessModel

    asked = {"until": ["\n\n\n"], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0}
    scorer = HarnessModel(
        byte_model(), tiny_tokenizer(), tokens_per_batch=128, batch_size=2, seed=7, shared=processes > 1
    )
    made = [Instance("generate_until", {}, (text, asked), number) for number, text in enumerate(sentences(5))]
    read = [Instance("loglikelihood_rolling", {}, (text * 3,), number) for number, text in enumerate(sentences(5))]
    return [scorer.generate_until(made), scorer.loglikelihood_rolling(read), scorer.num_requests]


def known_figures(model: str, folder: Path, processes: int) -> Any:
    """What the file has is not measured again, and all processes hear of it."""
    output = folder / f"results-of-{processes}.json"
    texts = {"ppl": (str(folder / "notes.txt"),), "max_length": 32, "output": output}
    (first,) = evaluate(model, EvaluationConfig(**texts)).entries
    measured: list[str] = []
    entries = evaluate(
        model,
        EvaluationConfig(**texts, prompts=("the old",), max_new_tokens=2),
        progress=lambda what, done, total: measured.append(what),
    ).entries
    kept = [entry["created"] for entry in json.loads(output.read_text())["entries"]]
    assert entries[0] == first
    assert kept == [entry.created for entry in entries]
    assert set(measured) == ({"completions"} if is_main() else set())
    return [entry.values for entry in entries]


def criteria(model: str, folder: Path, processes: int) -> Any:
    """The agreement of criteria that watch the same sequences."""
    comparison = compare_criteria(
        model,
        str(folder.parent / "texts.jsonl"),
        ComparisonConfig(criteria=("lora", "fisher", "taylor", "wanda", "flap"), ratios=(0.25, 0.5), steps=3),
        training={"per_device_train_batch_size": 4 // processes, "max_length": 32, "seed": 3},
    )
    return comparison.to_json()["agreement"]


def _in_second(fail: Callable[[torch.Tensor], None]) -> Any:
    """A model that fails in the second process."""
    model = byte_model(max_position_embeddings=512)
    if not is_main():
        model.register_forward_pre_hook(lambda module, args: fail(args[0]))
    return model


def too_little_memory(model: str, folder: Path, processes: int) -> Any:
    """The second process has no memory for the first batches, which makes all of them take smaller ones."""

    failed: list[int] = []

    def run_out(ids: torch.Tensor) -> None:
        if ids.shape[0] > 8:
            failed.append(ids.shape[0])
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    task = load_task(check_tasks([str(folder / "choices.jsonl")])[0])
    values = score_task(_in_second(run_out), tiny_tokenizer(), task, shared=processes > 1).to_values()
    assert bool(failed) != is_main()
    return values


def failing(model: str, folder: Path, processes: int) -> Any:
    """The second process alone fails."""

    def fail(ids: torch.Tensor) -> None:
        raise ValueError("the disk is on fire")

    task = load_task(check_tasks([str(folder / "choices.jsonl")])[0])
    return score_task(_in_second(fail), tiny_tokenizer(), task, batch_size=40, shared=processes > 1).to_values()


MEASURED: dict[str, Callable[[str, Path, int], Any]] = {
    "everything": everything,
    "one of each": one_of_each,
    "batches by tokens": batches_by_tokens,
    "rows": rows,
    "texts of the harness": texts_of_the_harness,
    "known figures": known_figures,
    "criteria": criteria,
    "too little memory": too_little_memory,
}
