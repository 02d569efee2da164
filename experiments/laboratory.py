"""What the experiments share: models and texts, runs that are remembered, means over seeds, and where results go.

Every run is a row of plain values under a key that names all that it depends on. Finished rows are read back from
``--cache`` and from the results that are there already, so that an experiment that was stopped goes on where it was,
and two experiments share the runs that they have in common.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraprune
from loraprune import OneshotConfig, PruningConfig, RunOptions
from loraprune.compat.renamed import under_old_names
from loraprune.data.demo import demo_data, demo_model
from loraprune.metrics.text_perplexity import text_perplexity
from loraprune.metrics.texts import find_texts, read_text
from loraprune.metrics.windows import Windows, cut_into_windows
from loraprune.pruning.config import RENAMED
from loraprune.pruning.oneshot_config import RENAMED_ONESHOT
from loraprune.record.provenance import machine_description, versions
from loraprune.tasks.options import LoraOptions

ROOT = Path(__file__).resolve().parent.parent
SEGMENT = 128
SEGMENTS = 64
LEARNING_RATE = 2e-3
BATCH_SIZE = 8
PAPER: dict[str, Any] = {
    "criterion": "lora", "allocation": "uniform", "repair": "none", "prune_start": 0.1, "prune_end": 0.9,
    "cut_every": 10, "average_bias_correction": False,
}  # fmt: skip
"""LoRAPrune as the paper has it, at the common learning rate."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, what it is tuned on, and the texts that it is measured on, by name."""

    name: str
    model: str
    train: str
    texts: Mapping[str, Path]


def subjects(options: argparse.Namespace) -> list[Subject]:
    """The models that were asked for.

    Raises:
        SystemExit: the folder of checkpoints and texts is not there.
    """
    needed = [name for name in options.models if name != "demo"]
    if needed and not options.shared.is_dir():
        raise SystemExit(
            f"There is no folder {options.shared} with the checkpoints and texts of {', '.join(needed)}. Name it with "
            "--shared, or take --models demo, which needs nothing."
        )
    text = options.shared / "text"
    foreign = {"wikitext2": text / "wiki.test.raw", "ptb": text / "ptb.valid.txt"}
    if not text.is_dir():
        foreign = {}
    found = []
    for name in options.models:
        if name == "demo":
            train, held_out = demo_data(options.cache.parent / "demo-text")
            model: Path = demo_model()
        else:
            train, held_out = text / "tinystories_train.jsonl", text / "tinystories_valid.txt"
            model = options.shared / "models" / name
        found.append(
            Subject(name=name, model=str(model), train=str(train), texts={"in-domain": Path(held_out), **foreign})
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: how it is called in a table, and all that it depends on.

    Attributes:
        name: of the row.
        x: the value that an experiment varies, where that is a number.
        how: ``joint``, ``separate`` (one shot, then LoRA), ``one shot`` (no tuning), ``dense`` (as it is).
        values: of the pruning configuration.
        steps: of tuning; None takes the common number.
        quantization: of the base.
    """

    name: str
    x: float | None = None
    how: str = "joint"
    values: Mapping[str, Any]
    steps: int | None = None
    quantization: str | None = None


Row = dict[str, Any]


class Laboratory:
    """Runs what is not known yet, and remembers it."""

    def __init__(self, options: argparse.Namespace, experiment: str) -> None:
        self.options, self.experiment = options, experiment
        self.output: Path = options.out / f"{experiment}.json"
        self.known: dict[str, Row] = {}
        for path in sorted(options.out.glob("*.json")):
            self._remember(json.loads(path.read_text(encoding="utf-8")).get("rows", ()))
        if options.cache.is_file():
            self._remember(json.loads(line) for line in options.cache.read_text(encoding="utf-8").splitlines())

    def _remember(self, rows: Iterable[Row]) -> None:
        self.known.update({row["key"]: row for row in rows if "key" in row})  # smollm2.json has none

    def measure(self, key: Mapping[str, Any], measured: Callable[[], Row]) -> Row | None:
        """The row of a key: a known one, or one that is measured now; with ``--known`` no run is made."""
        text = json.dumps(key, sort_keys=True)
        if self.options.known:
            return self.known.get(text)
        if text not in self.known:
            started = time.time()
            row = {"key": text, **key, **measured(), "seconds": round(time.time() - started, 2)}
            row = json.loads(json.dumps(row))
            self.known[text] = row
            self.options.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.options.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            shown = {name: row[name] for name in ("model", "seed", "how", "perplexity") if name in row}
            print(f"{self.experiment}: {shown} {row['seconds']:.0f} s", flush=True)
        return self.known[text]

    def run(self, subject: Subject, run: Run, seed: int) -> Row | None:
        """A run with its perplexities; None where it is not known and not to be made."""
        steps = 0 if run.how in ("one shot", "dense") else run.steps or self.options.steps
        key = {
            "model": subject.name,
            "how": run.how,
            "values": without_defaults(run),
            "quantization": run.quantization,
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "tokens": SEGMENT,
            "learning_rate": LEARNING_RATE,
            "seed": seed,
        }
        row = self.measure(key, lambda: pruned_and_measured(subject, run, steps, seed))
        own = {"name": run.name, "x": run.x}  # two experiments may call one run differently
        return None if row is None else own | row | own

    def write(self, rows: Sequence[Row], **further: Any) -> None:
        """Write the rows with what is needed to repeat them."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        given = [argument for argument in sys.argv[1:] if argument != "--known"]
        command = shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *given])
        values = {
            "experiment": self.experiment,
            "command": command,
            "versions": versions(),
            "machine": {key: value for key, value in machine_description().items() if key != "platform"},
            "segment_length": SEGMENT,
            **further,
            "rows": list(rows),
        }
        scratch = self.output.with_suffix(".tmp")
        scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.output)


def without_defaults(run: Run) -> dict[str, Any]:
    """The values of a run that differ from the defaults, under the names that rows know: one run has one key."""
    defaults: dict[str, Any] = {}
    if run.how == "joint":
        defaults = PruningConfig().flat()
    elif run.how != "dense":  # of the other options, rows say even what is the default
        usual = OneshotConfig(ratio=0.5).flat()
        same = ("ratio", "keep_layers", "damping", "calibration_sequences", "max_length", "seed")
        defaults = {name: usual[name] for name in same}
    found = {name: value for name, value in run.values.items() if name not in defaults or defaults[name] != value}
    return under_old_names(found, RENAMED if run.how == "joint" else RENAMED_ONESHOT)


def pruned_and_measured(subject: Subject, run: Run, steps: int, seed: int) -> Row:
    """Prune (and tune) a model, and measure it on all texts."""
    values = {"ratio": 0.5, **run.values}
    quiet = RunOptions(eval_sequences=0, latency=False, quantization=run.quantization)
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH_SIZE,
        "max_length": SEGMENT,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,  # as in the rows that are known
        "seed": seed,
        "save_strategy": "no",
    }
    if run.how == "dense":
        loaded = AutoModelForCausalLM.from_pretrained(subject.model, dtype=torch.float32)
        return measured(subject, loaded, AutoTokenizer.from_pretrained(subject.model), 0.0)
    if run.how == "joint":
        result: Any = loraprune.prune(
            subject.model,
            subject.train,
            PruningConfig(**{"seed": seed, **values}),
            training=training,
            lora=LoraOptions(r=8),
            options=quiet,
        )
        pruning = result.metrics["pruning"]
    else:
        usual = {"calibration_sequences": 128, "max_length": SEGMENT, "allocation": "uniform"}
        calibration = {**usual, "seed": seed, **values}
        result = loraprune.oneshot(subject.model, subject.train, OneshotConfig(**calibration), options=quiet)
        pruning = result.metrics["pruning"]
        if run.how == "separate":
            result = loraprune.prune(
                result.model,
                subject.train,
                PruningConfig(ratio=0.0, repair="none", seed=seed),
                training=training,
                lora=LoraOptions(r=8),
                tokenizer=result.tokenizer,
                options=quiet,
            )
    return measured(subject, result.model, result.tokenizer, pruning["ratio"])


def measured(subject: Subject, model: Any, tokenizer: Any, removed: float) -> Row:
    """Size and perplexities of a model, by the conventions of ``loraprune eval``."""
    found = {name: text_perplexity(model, windows(subject, name, tokenizer)).perplexity for name in subject.texts}
    return {"removed": removed, "parameters": model.num_parameters(), "perplexity": found}


_WINDOWS: dict[tuple[str, str], Windows] = {}


def windows(subject: Subject, name: str, tokenizer: Any) -> Windows:
    """The first segments of a text in the tokens of a model, which all runs of that model share."""
    key = (subject.name, name)
    if key not in _WINDOWS:
        (source,) = find_texts([f"{name}={subject.texts[name]}"])
        _WINDOWS[key] = cut_into_windows(read_text(source), tokenizer, length=SEGMENT, limit=SEGMENTS)
    return _WINDOWS[key]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["stories260K", "babyllama105", "demo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="checkpoints and texts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="where results and pictures go")
    parser.add_argument("--known", action="store_true", help="make no runs: tables and pictures of those there are")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "experiments.jsonl", help="finished runs")
    return parser


def quiet() -> None:
    """Silence the libraries."""
    for name in ("transformers", "bitsandbytes", "torchao", "loraprune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def in_words(values: Sequence[float]) -> str:
    """``12.3 ± 0.4``; plain of one value, a dash of none."""
    if not values:
        return "–"
    mean, deviation = spread(values)
    digits = 0 if mean >= 1000 else 1 if mean >= 100 else 2
    if not math.isfinite(mean):
        return "∞"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def perplexities(rows: Sequence[Row], text: str, **same: Any) -> list[float]:
    """The perplexities on a text of the rows that agree in some values."""
    return [row["perplexity"][text] for row in rows if all(row.get(name) == value for name, value in same.items())]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def by_place(rows: Sequence[Row], model: str, name: str, places: Iterable[float]) -> list[str]:
    """The cells of a row of a table: perplexity in the domain at each value of what was varied."""
    return [in_words(perplexities(rows, "in-domain", model=model, name=name, x=place)) for place in places]


def all_runs(options: argparse.Namespace, experiment: str, runs: Sequence[Run]) -> tuple[Laboratory, list[Row]]:
    """Every run of an experiment on every model, seed by seed, so that what there is after a stop is whole."""
    quiet()
    laboratory = Laboratory(options, experiment)
    rows: list[Row] = []
    for seed in options.seeds:
        for subject in subjects(options):
            rows += [row for run in runs if (row := laboratory.run(subject, run, seed)) is not None]
            laboratory.write(rows)
    return laboratory, rows
