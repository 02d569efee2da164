"""Folders of runs, benchmarks and evaluations for comparisons: records alone, without any model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.measure.evaluation.results import Entry, Results

MACHINE = {"platform": "Linux-6", "processor": "x86_64", "cpus": 2, "threads": 1}
DENSE = {"parameters": 1000, "bytes": 4000, "perplexity": 4.0, "latency_ms": 10.0}
PRUNING = {
    "ratio": 0.5,
    "target_ratio": 0.5,
    "parameters_before": 1000,
    "parameters": 500,
    "prunable_parameters_before": 1000,
    "prunable_parameters": 500,
}
FACTS = {"num_tokens": 640, "segment_length": 64, "latency_tokens": 64}


def write_run(
    folder: Path,
    *,
    dense: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    seconds: float | None = 60.0,
    metrics: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write the record of a run; what is not given is that of a structured run of the model ``models/tiny``.

    Args:
        folder: of the run.
        dense: measures of the model before it, in place of the usual ones.
        facts: what both models were measured on.
        seconds: that it took.
        metrics: further ones.
        settings: of the run.
        changes: fields of the record (machine, base_model, created, base_pruning, task), or measures of the result.
    """
    fields = ("machine", "base_model", "created", "base_pruning", "task")
    measures = {key: value for key, value in changes.items() if key not in fields}
    facts = FACTS if facts is None else facts
    record = {
        "base_model": "models/tiny",
        "task": "causal-lm",
        "created": f"2026-01-01T00:00:00+00:00 {folder.name}",
        "command": None,
        "settings": {"pruning": {"criterion": "fisher"}} if settings is None else settings,
        "metrics": {
            "dense": {**(DENSE if dense is None else dense), **facts},
            "pruned": {"parameters": 500, "bytes": 2000, "perplexity": 8.0, "latency_ms": 6.0, **measures, **facts},
            "pruning": PRUNING,
            "seconds": seconds,
            **(metrics or {}),
        },
        "plan": {},
        "versions": {},
        "machine": MACHINE,
        **{key: value for key, value in changes.items() if key in fields},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pruning.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def created(folder: Path) -> str:
    """When a run was made, as the run that went on from it remembers."""
    found: str = json.loads((folder / "pruning.json").read_text())["created"]
    return found


def with_weights(folder: Path, content: str) -> Path:
    """The folder with files that can be hashed as those of a model."""
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_text(content, encoding="utf-8")
    return folder


def entry(model: str | Path, name: str = "wiki", kind: str = "perplexity", **changes: Any) -> Entry:
    """What ``loraprune eval`` found: a perplexity at 64 tokens, if nothing else is said."""
    values: dict[str, Any] = {"perplexity": 9.0, "bits_per_byte": 1.0, "num_tokens": 630}
    settings: dict[str, Any] = {"max_length": 64, "stride": None, "limit": None, "dtype": "float32", "device": "cpu"}
    if kind == "task":
        values = {"acc": 0.5, "acc_norm": 0.6, "num_items": 200}
        settings["num_fewshot"] = 0
    return Entry(
        model=str(model),
        fingerprint=changes.pop("fingerprint", f"sha256:{model}"),
        kind=kind,
        name=name,
        settings=settings | changes.pop("settings", {}),
        data=changes.pop("data", {"source": f"{name}.txt", "sha256": name}),
        values=values | changes.pop("values", {}),
        parameters=changes.pop("parameters", 700),
        **changes,
    )


def write_results(path: Path, *entries: Entry) -> Path:
    """A file of ``loraprune eval``."""
    path.write_text(Results(entries).to_text(), encoding="utf-8")
    return path


def write_bench(
    path: Path,
    milliseconds: Mapping[str, float],
    *,
    measure: str = "prefill",
    batch: int = 1,
    fingerprints: Mapping[str, str] | None = None,
) -> Path:
    """A file of ``loraprune bench``: seconds of models by name; the first is the one that others are compared with."""
    hashes = fingerprints or {}
    first = next(iter(milliseconds.values()))
    figures = [
        {
            "contender": name,
            "measure": measure,
            "settings": {"batch_size": batch, "tokens": 64},
            "tokens": 64,
            "items": 1,
            "peak_bytes": None,
            "flops": None,
            "cache_bytes_per_token": None,
            "cut_seconds": None,
            "share_of_first": value / first,
            "seconds": [value / 1000] * 3,
        }
        for name, value in milliseconds.items()
    ]
    values = {
        "format": "loraprune-bench",
        "version": 1,
        "profile": "inference",
        "created": "",
        "command": None,
        "machine": {"device": "cpu"},
        "versions": {},
        "settings": {},
        "models": [
            {"label": name, "name": name, "parameters": 1, "memory_bytes": 4, "fingerprint": hashes.get(name)}
            for name in milliseconds
        ],
        "left_out": {},
        "figures": figures,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
