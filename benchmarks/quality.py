"""Perplexity after pruning: the default recipe, the paper's, and the default with one thing changed at a time.

    python benchmarks/quality.py --model DIR --train FILE --held-out FILE --out results.jsonl

Every row sees the same tokens in the same order from the same seed. Finished rows are read back from ``--out``, so
that an interrupted run goes on. ``--model demo`` takes the bundled model and the text that goes with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.tasks.options import LoraOptions

DEFAULT = PruningConfig()
PAPER = replace(
    DEFAULT, criterion="lora", allocation="uniform", repair="none", prune_start=0.1, prune_end=0.9, cuts=16,
    average_bias_correction=False,
)  # fmt: skip
VARIANTS: dict[str, PruningConfig] = {
    "default": DEFAULT,
    "paper's recipe": PAPER,
    "default, criterion lora": replace(DEFAULT, criterion="lora"),
    "default, no refit": replace(DEFAULT, repair="none"),
    "default, uniform": replace(DEFAULT, allocation="uniform"),
    "default, cuts end at 90 %": replace(DEFAULT, prune_end=0.9),
    "default, magnitude": replace(DEFAULT, criterion="magnitude"),
    "default, random": replace(DEFAULT, criterion="random"),
}


def run_one(options: argparse.Namespace, name: str, ratio: float, pruning: PruningConfig) -> dict[str, Any]:
    """One run; its result as plain values."""
    started = time.time()
    model, train, held_out = options.model, options.train, options.held_out
    result = loraprune.prune(
        model,
        train,
        replace(pruning, ratio=ratio),
        training={
            "max_steps": options.max_steps,
            "per_device_train_batch_size": options.batch_size,
            "max_length": options.max_length,
            "learning_rate": options.learning_rate,
            "warmup_steps": 0,  # as in the published tables
            "seed": options.seed,
        },
        lora=LoraOptions(r=8),
        options=RunOptions(eval_data=held_out, eval_sequences=options.eval_sequences, latency=False),
    )
    cuts = result.metrics["pruning"]["cuts"]
    return {
        "model": options.name,
        "variant": name,
        "ratio": ratio,
        "reached": result.metrics["pruning"]["ratio"],
        "dense": result.metrics["dense"]["perplexity"],
        "perplexity": result.metrics["pruned"]["perplexity"],
        "segment_length": result.metrics["pruned"]["segment_length"],
        "widths": {kind: counts[0] for kind, counts in cuts[-1]["widths"].items()} if cuts else {},
        "seconds": time.time() - started,
        "seed": options.seed,
        "budget": budget(options),
    }


def budget(options: argparse.Namespace) -> str:
    """What must agree for two rows to be comparable."""
    return f"{options.max_steps} steps of {options.batch_size}x{options.max_length} tokens, lr {options.learning_rate}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as one Markdown table a model: variants down, ratios across."""
    lines: list[str] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        ratios = sorted({row["ratio"] for row in own})
        length = own[0]["segment_length"]
        lines += [
            f"\n{model}: dense {own[0]['dense']:.2f}, {length}-token segments\n",
            "| | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " | KV heads, channels |",
            "|---|" + "---|" * (len(ratios) + 1),
        ]
        for variant in dict.fromkeys(row["variant"] for row in own):
            found = {row["ratio"]: row for row in own if row["variant"] == variant}
            cells = [f"{found[ratio]['perplexity']:.2f}" if ratio in found else "–" for ratio in ratios]
            widths = "; ".join(", ".join(map(str, found[r]["widths"].values())) for r in ratios if r in found)
            lines.append(f"| {variant} | " + " | ".join(cells) + f" | {widths} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train")
    parser.add_argument("--held-out")
    parser.add_argument("--out", type=Path, default=Path("build/quality.jsonl"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--eval-sequences", type=int, default=256)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    options.name = Path(options.model).name
    if options.model == "demo":
        from loraprune.data.demo import demo_data, demo_model

        folder = options.out.parent / "demo-text"
        options.model = str(demo_model())
        options.train, options.held_out = (str(path) for path in demo_data(folder))

    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    model = options.name
    for ratio in options.ratios:
        for name in options.variants:
            key = (model, name, ratio, options.seed, budget(options))
            if any((r["model"], r["variant"], r["ratio"], r["seed"], r.get("budget")) == key for r in done):
                continue
            row = run_one(options, name, ratio, VARIANTS[name])
            done.append(row)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{model} {ratio} {name}: {row['perplexity']:.2f} {row['widths']} ({row['seconds']:.0f} s)", flush=True
            )
    print(table([row for row in done if row["model"] == model]))


if __name__ == "__main__":
    main()
