"""The standard work: every method before and after the same recovery, on small models and on SmolLM2-135M.

    python experiments/standard.py
    python experiments/standard.py --models SmolLM2 --smollm2 FOLDER --seeds 1 --ratios 0.2 0.5

A method cuts on calibration data (64 rows) and is measured. Then LoRA tunes what is left on the same tokens for all,
once for each learning rate and rank of a grid; the best of them in the domain counts, for each method by itself.
``paper's recipe`` cuts while it tunes. The time of a run stands beside its quality.

The small models are tuned for 200 steps of 16 × 128 tokens of their own kind of text, SmolLM2 for 60 steps of 8 × 256
tokens of C4. Texts are measured in segments of 2048 tokens, or the model's context.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from laboratory import PAPER, Laboratory, Row, Subject, in_words, markdown, parser, quiet, subjects
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraprune
from loraprune import OneshotConfig, PruningConfig, RunOptions
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import find_texts, read_text
from loraprune.metrics.windows import cut_into_windows
from loraprune.tasks.options import LoraOptions

SEGMENT, MEASURED = 2048, 40_960
UNSEEN_DOCUMENTS = 80
QUIET: dict[str, Any] = {"eval_sequences": 0, "latency": False, "report": False, "verify": False}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Data of a model's runs.

    Attributes:
        steps: of tuning, on ``batch`` rows of ``length`` tokens each.
        calibration: tokens of a calibration row.
    """

    steps: int
    batch: int
    length: int
    calibration: int


SMALL, REAL = (
    Budget(steps=200, batch=16, length=128, calibration=256),
    Budget(steps=60, batch=8, length=256, calibration=512),
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table.

    Attributes:
        name: of the row.
        cut: options of ``oneshot``; None where the method cuts while it tunes.
        joint: options of ``prune`` then.
        tuning: options of the recovery, beside learning rate and rank.
    """

    name: str
    cut: Mapping[str, Any] | None = None
    joint: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)


USUAL = {"distill": 0.0}
PLAIN = {"allocation": "uniform", "repair": "none"}
METHODS = (
    Method(name="Wanda", cut={"criterion": "wanda", **PLAIN}, tuning=USUAL),
    Method(name="FLAP", cut={"criterion": "flap", "allocation": "global", "repair": "bias"}, tuning=USUAL),
    Method(name="LLM-Pruner", cut={"criterion": "taylor", "taylor_form": "first", **PLAIN}, tuning=USUAL),
    Method(name="paper's recipe", joint=PAPER, tuning=USUAL),
    Method(
        name="loraprune 0.1", cut={"repair": "stream", "allocation": "uniform"}, tuning={**USUAL, "warmup_steps": 0}
    ),
    Method(name="loraprune", cut={}),
    Method(name="... uniform", cut={"allocation": "uniform"}),
    Method(name="... readers", cut={"repair": "stream+readers"}),
    Method(name="... no distillation", cut={}, tuning=USUAL),
    Method(name="... half distillation", cut={}, tuning={"distill": 0.5}),
)


def all_subjects(options: argparse.Namespace) -> Iterator[tuple[Subject, Budget]]:
    """The models that were asked for; the held-out documents of C4 are the last ones of its file."""
    small = argparse.Namespace(**{**vars(options), "models": [name for name in options.models if name != "SmolLM2"]})
    yield from ((subject, SMALL) for subject in subjects(small))
    if "SmolLM2" in options.models:
        text, own = options.shared / "text", options.cache.parent / "standard-text"
        own.mkdir(parents=True, exist_ok=True)
        lines = (text / "c4_docs.jsonl").read_text(encoding="utf-8").splitlines()
        (own / "c4-tuning.jsonl").write_text("\n".join(lines[:-UNSEEN_DOCUMENTS]) + "\n", encoding="utf-8")
        unseen = "\n\n".join(json.loads(line)["text"] for line in lines[-UNSEEN_DOCUMENTS:])
        (own / "c4-unseen.txt").write_text(unseen, encoding="utf-8")
        texts = {"in-domain": own / "c4-unseen.txt", "wikitext2": text / "wiki.test.raw", "ptb": text / "ptb.valid.txt"}
        yield Subject(name="SmolLM2", model=str(options.smollm2), train=str(own / "c4-tuning.jsonl"), texts=texts), REAL


class Measure:
    """Perplexities of a model's runs, on texts that are cut once."""

    def __init__(self, subject: Subject) -> None:
        tokenizer = AutoTokenizer.from_pretrained(subject.model)
        context = AutoModelForCausalLM.from_pretrained(subject.model).config.max_position_embeddings
        length = min(SEGMENT, context)
        self._windows = {}
        for name, path in subject.texts.items():
            (source,) = find_texts([f"{name}={path}"])
            self._windows[name] = cut_into_windows(
                read_text(source), tokenizer, length=length, limit=MEASURED // length
            )

    def dense(self, subject: Subject) -> Row:
        """Of the model itself."""
        return self(AutoModelForCausalLM.from_pretrained(subject.model, dtype=torch.float32))

    def __call__(self, model: Any) -> Row:
        """On every text."""
        found = {name: text_perplexity(model, windows).perplexity for name, windows in self._windows.items()}
        return {"parameters": model.num_parameters(), "perplexity": found}


def run(
    laboratory: Laboratory, subject: Subject, budget: Budget, method: Method, ratio: float, seed: int, measure: Measure
) -> list[Row]:
    """A method before and after every recovery of the grid."""
    options, folder = laboratory.options, laboratory.options.cache.parent / "standard-models"
    key = {"model": subject.name, "method": method.name, "ratio": ratio, "seed": seed}
    name = "-".join(f"{value}" for value in key.values()).replace(" ", "_")
    rows = []

    def cut() -> Row:
        values = {"calibration_sequences": 64, "max_length": budget.calibration, "seed": seed, **(method.cut or {})}
        where = RunOptions(output=folder / name, overwrite=True, **QUIET)
        result = loraprune.oneshot(subject.model, subject.train, OneshotConfig(ratio=ratio, **values), options=where)
        return measure(result.model)

    def tuned(rate: float, rank: int) -> Row:
        tuning = dict(method.tuning)
        where = RunOptions(distill=tuning.pop("distill", None), **QUIET)
        training = {
            "max_steps": budget.steps, "per_device_train_batch_size": budget.batch, "max_length": budget.length,
            "learning_rate": rate, "seed": seed, **tuning,
        }  # fmt: skip
        given: dict[str, Any] = {"training": training, "lora": LoraOptions(r=rank), "options": where}
        if method.cut is None:
            config = PruningConfig(ratio=ratio, **method.joint)
            return measure(loraprune.prune(subject.model, subject.train, config, **given).model)
        if not (folder / name).is_dir():
            cut()
        return measure(loraprune.recover(folder / name, subject.train, **given).model)

    if method.cut is not None:
        row = laboratory.measure({**key, "how": "cut"}, cut)
        rows += [row] if row else []
    for rate, rank in product(options.rates, options.ranks) if budget.steps else ():
        place = {**key, "how": "tuned", "rate": rate, "rank": rank, "steps": budget.steps}
        row = laboratory.measure(place, partial(tuned, rate, rank))
        rows += [row] if row else []
    return rows


def table(rows: list[Row], model: str, ratios: list[float]) -> str:
    """Perplexities before and after recovery; of the grid, what is best in the domain."""
    texts = list(next(row for row in rows if row["model"] == model)["perplexity"])
    lines = []
    for ratio, method in product(ratios, METHODS):
        mine = [row for row in rows if (row["model"], row["ratio"], row["method"]) == (model, ratio, method.name)]
        before = {row["seed"]: row for row in mine if row["how"] == "cut"}
        best: dict[int, Row] = {}
        for row in mine:
            known = best.get(row["seed"])
            if row["how"] == "tuned" and (known is None or _in_domain(row) < _in_domain(known)):
                best[row["seed"]] = row
        cells = [in_words([row["perplexity"][text] for row in of.values()]) for of in (before, best) for text in texts]
        how = ", ".join(sorted({f"{row['rate']:g} r{row['rank']}" for row in best.values()}))
        seconds = in_words([row["seconds"] for row in (best or before).values()])
        lines.append([method.name, f"{ratio:.0%}", *cells, how, seconds])
    heads = ["method", "removed", *texts, *(f"{text}, tuned" for text in texts), "rate and rank", "seconds"]
    return markdown(heads, lines)


def _in_domain(row: Row) -> float:
    return float(row["perplexity"]["in-domain"])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--smollm2", type=Path, default=Path("build/smollm2"), help="folder of SmolLM2-135M")
    options.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    options.add_argument("--rates", type=float, nargs="+", default=[2e-3, 5e-3])
    options.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    options.add_argument("--methods", nargs="+", default=[method.name for method in METHODS])
    options.add_argument("--untuned", action="store_true", help="measure the cuts alone")
    given = options.parse_args()
    quiet()
    laboratory, rows = Laboratory(given, "standard"), []
    started = time.time()
    for subject, budget in all_subjects(given):
        measure = Measure(subject)
        if given.untuned:
            budget = Budget(steps=0, batch=0, length=0, calibration=budget.calibration)
        dense = laboratory.measure(
            {"model": subject.name, "how": "dense"},
            partial(measure.dense, subject),
        )
        for seed, ratio, method in product(given.seeds, given.ratios, METHODS):
            if method.name in given.methods:
                rows += run(laboratory, subject, budget, method, ratio, seed, measure)
                laboratory.write([*([dense] if dense else []), *rows], measured_tokens=MEASURED)
        if dense:
            print(f"\n### {subject.name}: dense {dense['perplexity']}\n")
        print(table(rows, subject.name, given.ratios))
    print(f"\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
