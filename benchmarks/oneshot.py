"""Training-free pruning: scores by repairs, sparse methods by patterns, and recovery beside the joint run.

    python benchmarks/oneshot.py PART --model DIR --train FILE --held-out FILE --out rows.jsonl

PART is ``structured`` (every score with every repair, uniform widths, and further ways for the best, without steps on
the norms), ``sparse`` (every unstructured method at 50 %, 4:8 and 2:4) or ``recovery`` (one shot, then LoRA, beside
pruning while LoRA tunes, with equal tokens of tuning). Every row sees the same calibration rows and the same held-out
tokens. Finished rows are read back from ``--out``, so that an interrupted run goes on. ``--model demo`` takes the
bundled model and its text.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

import loraprune
from loraprune import OneshotConfig, PruningConfig, RunOptions
from loraprune.tasks.options import LoraOptions

SCORES = ("osscar", "fisher", "taylor", "flap", "wanda", "magnitude", "random")
REPAIRS = ("none", "bias", "refit", "stream")
FURTHER: dict[str, dict[str, Any]] = {
    f"{method}, stream, {how}": {"criterion": method, "repair": "stream", **values}
    for method in ("osscar", "fisher")
    for how, values in (
        ("balanced", {"allocation": "balanced"}),
        ("global", {"allocation": "global"}),
        ("global, 4 cuts", {"allocation": "global", "cuts": 4}),
    )
} | {"flap, bias, global": {"criterion": "flap", "repair": "bias", "allocation": "global"}}
SPARSE: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude"},
    "wanda": {"criterion": "wanda"},
    "wanda, variant": {"criterion": "wanda", "variant": True},
    "wanda, within the matrix": {"criterion": "wanda", "within": "matrix"},
    "magnitude, within the row": {"criterion": "magnitude", "within": "row"},
    "sparsegpt": {"criterion": "sparsegpt"},
    "magnitude+obs, sequential": {"criterion": "magnitude+obs"},
    "magnitude+obs, iterative": {"criterion": "magnitude+obs", "order": "iterative"},
    "wanda+obs, sequential": {"criterion": "wanda+obs"},
    "wanda+obs, iterative": {"criterion": "wanda+obs", "order": "iterative"},
}
PATTERNS = ("0.5", "4:8", "2:4")
JOINT: dict[str, dict[str, Any]] = {"joint": {}, "joint, global": {"allocation": "global"}}
ONE_SHOT: dict[str, dict[str, Any]] = {
    "one shot, then LoRA": {"allocation": "uniform"},
    "one shot, global, then LoRA": {"allocation": "global"},
}


def variants(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, amount and settings of every row of a part."""
    if options.part == "structured":
        for ratio in options.ratios:
            for method in SCORES:
                for repair in REPAIRS:
                    values = {"criterion": method, "repair": repair, "allocation": "uniform", "norm_steps": 0}
                    yield f"{method}, {repair}, uniform", f"{ratio:.0%}", {"ratio": ratio, **values}
            for name, values in FURTHER.items():
                yield name, f"{ratio:.0%}", {"ratio": ratio, "norm_steps": 0, **values}
    elif options.part == "sparse":
        for pattern in PATTERNS:
            for name, values in SPARSE.items():
                if not ({"variant", "within"} & set(values) and ":" in pattern):
                    yield name, pattern, {"sparsity": pattern, **values}
    else:
        for ratio in options.ratios:
            for name, values in (ONE_SHOT | JOINT).items():
                yield name, f"{ratio:.0%}", {"ratio": ratio, **values}


def run_one(options: argparse.Namespace, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """One row as plain values."""
    if name in JOINT:
        return tuned(options, options.model, PruningConfig(**values, seed=options.seed))
    config = OneshotConfig(
        **values,
        calibration_sequences=options.calibration_sequences,
        max_length=options.max_length,
        seed=options.seed,
    )
    result = loraprune.oneshot(options.model, options.train, config, options=run_options(options))
    metrics = result.metrics
    if options.part == "recovery":
        row = tuned(options, result.model, PruningConfig(ratio=0.0, repair="none", seed=options.seed), result.tokenizer)
        row["before"] = row.pop("dense")  # what the tuning starts from, on the same segments
        return row
    row = {key: metrics["pruned"][key] for key in ("perplexity", "segment_length")}
    row["dense"] = metrics["dense"]["perplexity"]
    row["reached"] = (metrics.get("pruning") or {}).get("ratio") or metrics["sparsity"]["reached"]
    row["seconds_a_layer"] = sum(matrix.seconds for matrix in result.matrices) / len(result.structure.blocks)
    return row


def tuned(options: argparse.Namespace, model: Any, config: PruningConfig, tokenizer: Any = None) -> dict[str, Any]:
    """A run with LoRA."""
    training = {
        "max_steps": options.max_steps,
        "per_device_train_batch_size": 16,
        "max_length": options.tuning_length,
        "learning_rate": options.learning_rate,
        "warmup_steps": 0,  # as in the published tables
        "seed": options.seed,
    }
    run = run_options(options)
    lora = LoraOptions(r=8)
    result = loraprune.prune(
        model, options.train, config, training=training, lora=lora, tokenizer=tokenizer, options=run
    )
    measured = result.metrics["pruned"]
    return {
        "perplexity": measured["perplexity"],
        "segment_length": measured["segment_length"],
        "dense": result.metrics["dense"]["perplexity"],
        "reached": result.metrics["pruning"]["ratio"],
    }


def run_options(options: argparse.Namespace) -> RunOptions:
    """What is measured."""
    return RunOptions(eval_data=options.held_out, eval_sequences=options.eval_sequences, latency=False)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table: variants down, amounts across."""
    amounts = list(dict.fromkeys(row["amount"] for row in rows))
    first = next((row for row in rows if "dense" in row), rows[0])
    dense = f"dense {first['dense']:.2f}, " if "dense" in first else ""
    lines = [
        f"\n{first['model']}, {first['part']}: {dense}{first['segment_length']}-token segments\n",
        "| | " + " | ".join(amounts) + " |",
        "|---|" + "---|" * len(amounts),
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        found = {row["amount"]: row for row in rows if row["variant"] == variant}
        cells = [cell(found[amount]) if amount in found else "–" for amount in amounts]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """Perplexity; that before the tuning in brackets; what was wrong where there is none."""
    if "error" in row:
        return "refused"
    before = f" ({row['before']:.2f})" if "before" in row else ""
    return f"{row['perplexity']:.2f}{before}"


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("structured", "sparse", "recovery"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--train")
    parser.add_argument("--held-out")
    parser.add_argument("--out", type=Path, default=Path("build/oneshot.jsonl"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--only", nargs="+", help="variants whose names begin so")
    parser.add_argument("--calibration-sequences", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--eval-sequences", type=int, default=128)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--tuning-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    name = Path(options.model).name
    if options.model == "demo":
        from loraprune.data.demo import demo_data, demo_model

        options.model = str(demo_model())
        options.train, options.held_out = (str(path) for path in demo_data(options.out.parent / "demo-text"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows = []
    for variant, amount, values in variants(options):
        if options.only and not variant.startswith(tuple(options.only)):
            continue
        key = {"model": name, "part": options.part, "variant": variant, "amount": amount, "seed": options.seed}
        row = next((row for row in done if row.items() >= key.items()), None)
        if row is None:
            started = time.time()
            try:
                row = key | run_one(options, variant, values)
            except ValueError as error:  # a pattern that does not divide a width, say
                row = key | {"error": str(error)}
            row["seconds"] = time.time() - started
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name} {amount} {variant}: {row.get('error') or cell(row)} ({row['seconds']:.0f} s)", flush=True)
        rows.append(row)
    if not rows:
        raise SystemExit("No variant has a name that begins so.")
    # The heading is taken from the first row that was measured.
    print(table(sorted(rows, key=lambda row: "error" in row)))


if __name__ == "__main__":
    main()
