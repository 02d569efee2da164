"""Results: folders that are no runs, records and figures that are damaged, runs of two kinds, missing files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cli.refusals.files import both, fifo, folder_at, written
from tests.cli.refusals.wrong import Prepare, Wrong, wrong

RECORD, REPORT, FIGURES = "run/pruning.json", "run/report.json", "run/evaluation.json"
NESTED = "[" * 100_000
RESULTS = {"format": "loraprune-evaluation", "version": 1, "entries": []}
PRUNING = {
    **{"ratio": 0.5, "target_ratio": 0.5, "parameters_before": 9, "parameters": 8},
    **{"prunable_parameters_before": 2, "prunable_parameters": 1},
}
METRICS = {
    "pruning": PRUNING,
    "dense": {"parameters": 9, "perplexity": 3.0},
    "pruned": {"parameters": 8, "perplexity": 4.0},
}
PACKED = "packed/semi_structured.json"


def plain(folder: Path) -> None:
    """Makes ``run`` a model that loraprune did not write."""
    shutil.copytree(folder / "model", folder / "run")


def recorded(name: str = "run", **changes: object) -> Prepare:
    """A model with the record of a run that measured little."""

    def prepare(folder: Path) -> None:
        shutil.copytree(folder / "model", folder / name)
        record = {"base_model": "model", "recipe": {}, "task": "causal-lm", "metrics": METRICS}
        (folder / name / "pruning.json").write_text(json.dumps(record | changes))

    return prepare


REPORTS = (
    wrong("report gone", "no folder gone", "Name the folder"),
    wrong("report run", "run", "report.json", prepare=folder_at("run")),
    wrong("report run", "run", "report.json", prepare=plain),
    wrong("report data.jsonl", "data.jsonl"),
    wrong("report run", REPORT, "cannot be read", prepare=both(recorded(), written(REPORT, ""))),
    wrong("report run", REPORT, "nested", prepare=both(recorded(), written(REPORT, NESTED))),
    wrong("report run", REPORT, "an object", prepare=both(recorded(), written(REPORT, "[1]"))),
    wrong("report run", REPORT, "utf-8", prepare=both(recorded(), written(REPORT, b"\xff"))),
    wrong("report run", RECORD, "damaged", prepare=written(RECORD, "{")),
    wrong("report run", RECORD, "nested", prepare=written(RECORD, NESTED)),
    wrong("report run", RECORD, "version 99", "Install", prepare=recorded(version=99)),
    wrong("report run --evaluation gone.json", "gone.json", prepare=recorded()),
    wrong("report run --evaluation data.jsonl", "data.jsonl", "loraprune eval", prepare=recorded()),
)

COMPARISONS = (
    wrong("compare gone", "no folder gone", "Name one"),
    wrong("compare run", "not a run", "--evaluation", prepare=folder_at("run")),
    wrong("compare model", "not a run", "--evaluation"),
    wrong("compare data.jsonl", "is a file", "folders"),
    wrong("compare run.run", "unfinished", "--resume", prepare=folder_at("run.run")),
    wrong("compare .", "not a run", "such as run", prepare=recorded()),
    wrong("compare run run", "named twice", "once", prepare=recorded()),
    wrong("compare run --names a b", "1 runs and 2 names", "Give", prepare=recorded()),
    wrong("compare run", RECORD, "damaged", "Leave this run out", prepare=written(RECORD, "")),
    wrong("compare run", RECORD, "nested", "Leave this run out", prepare=written(RECORD, NESTED)),
    wrong("compare run", RECORD, "utf-8", "Leave this run out", prepare=written(RECORD, b"\xff")),
    wrong("compare run", "metrics", "Leave this run out", prepare=recorded(metrics=5)),
    wrong("compare run", "checksums", "Leave this run out", prepare=recorded(checksums=5)),
    wrong("compare run", "no measures of the dense model", "Leave", prepare=recorded(metrics={})),
    wrong("compare run", "no measures, like all", "--eval", prepare=recorded(metrics={}, versions={"torch": "2"})),
    wrong("compare run", "version 99", "Install", prepare=recorded(version=99)),
    wrong("compare run", "not a run", prepare=fifo(RECORD)),
    wrong("compare run --evaluation gone.json", "gone.json", "loraprune eval", prepare=recorded()),
    wrong("compare run --evaluation e.json", "e.json", "nested", prepare=both(recorded(), written("e.json", NESTED))),
    wrong("compare run --evaluation e.json", "e.json", "not written", prepare=both(recorded(), written("e.json", "5"))),
    wrong("compare run --evaluation e.json", "e.json", "not a regular", prepare=both(recorded(), fifo("e.json"))),
    wrong(
        "compare run --evaluation e.json",
        *("e.json", "damaged"),
        prepare=both(recorded(), written("e.json", json.dumps(RESULTS | {"entries": [5]}))),
    ),
    wrong(
        "compare run --evaluation e.json",
        *("e.json", "version 99"),
        prepare=both(recorded(), written("e.json", json.dumps(RESULTS | {"version": 99}))),
    ),
    wrong("compare run --bench gone.json", "gone.json", "benchmark", prepare=recorded()),
    wrong("compare run --bench b.json", "b.json", "nested", prepare=both(recorded(), written("b.json", NESTED))),
    wrong("compare run --bench b.json", "b.json", "loraprune bench", prepare=both(recorded(), written("b.json", "{}"))),
    wrong("compare run --quality nonsense", "nonsense", prepare=recorded()),
    wrong("compare run --latency nonsense", "nonsense", prepare=recorded()),
    wrong("compare run -o page.txt", "page.txt", ".html", prepare=recorded()),
    wrong("compare run --picture picture.gif", "picture.gif", ".svg", prepare=recorded()),
    wrong("compare run -o a.html --json a.html", "a.html", "Give each its own file", prepare=recorded()),
)

EXPORTS = (
    wrong("export model --format gguff", "gguff", "gguf"),
    wrong("export data.jsonl --format gguf", "data.jsonl is not a folder"),
    wrong("export demo --format gguf", "bundled model is part of this package", "-o PATH"),
    wrong("export llama-2-7b --format gguf", "llama-2-7b is a preset"),
    wrong("verify llama-2-7b", "llama-2-7b is a preset"),
    wrong("export run --format gguf", "no config.json", "save_pretrained", prepare=folder_at("run")),
    wrong("export model --format compressed-tensors", "2:4", "loraprune oneshot"),
    wrong("export model --format onnx --outtype f16", "--outtype", "leave it out"),
    wrong("export model --format gguf --outtype q2", "q2", "f16"),
    wrong("export model --format semi-structured -o model", "checkpoint itself", "-o"),
    wrong("export model --format onnx -o a.onnx", "a.onnx", "--overwrite", prepare=written("a.onnx", "x")),
    wrong("eval packed --ppl data.jsonl", PACKED, "Export", prepare=lambda folder: packed(folder, "{")),
    wrong("eval packed --ppl data.jsonl", PACKED, "nested", prepare=lambda folder: packed(folder, NESTED)),
    wrong("bench packed", PACKED, "lists no files", prepare=lambda folder: packed(folder, '{"format": 1}')),
    wrong("prune packed --data data.jsonl -o out", "packed 2:4", "Name", prepare=lambda folder: packed(folder, "{}")),
)


def packed(folder: Path, description: str) -> None:
    """A folder of packed weights, without these."""
    shutil.copytree(folder / "model", folder / "packed")
    (folder / "packed" / "model.safetensors").unlink()
    (folder / PACKED).write_text(description)


OUTPUTS = (
    wrong("eval model --ppl data.jsonl -o e.json", "e.json", "loraprune eval", prepare=written("e.json", "[]")),
    wrong("eval model --ppl data.jsonl -o e.json", "e.json", "nested", "Name", prepare=written("e.json", NESTED)),
    wrong("eval model --ppl data.jsonl -o e.json", "e.json", prepare=folder_at("e.json")),
    wrong("bench model -o b.json", "b.json", prepare=written("b.json", "[]")),
    wrong("bench model -o data.jsonl/b.json", "data.jsonl"),
    wrong("plan llama-2-7b -o p.json", "p.json", prepare=written("p.json", "[]")),
    wrong("inspect model --draft data.jsonl", "data.jsonl exists", "--draft"),
    wrong("verify data.jsonl", "data.jsonl is not a folder"),
    wrong("demo -o data.jsonl", "data.jsonl"),
    wrong("demo -o model", "model"),
    wrong("demo --ratio 1", "--ratio", "(0, 1)"),
    wrong("bench model ./model/gone", "./model/gone", "no config.json"),
    wrong("bench model --against-base", "model", "--base"),
    wrong("bench run --against-base", "gone", "--base", prepare=recorded(base_model="./gone")),
)

TABLE: tuple[Wrong, ...] = (*REPORTS, *COMPARISONS, *EXPORTS, *OUTPUTS)
