"""Every method of the field on equal terms: the same model, data, tokens of tuning and share of removed weights.

    python benchmarks/comparison.py --model DIR --train FILE --held-out FILE --out rows.jsonl

Three blocks of rows: methods as they were published, the joint recipe with one switch turned (the criterion), and
depth and hidden size beside width. Methods that prune before they tune get the same tuning afterwards. Finished rows
are read back from ``--out``, so that an interrupted run goes on, and rows that failed are tried again. ``--model demo``
takes the bundled model and its text; ``--print`` writes the tables of what there is.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

import loraprune
from loraprune import OneshotConfig, PruningConfig, RunOptions
from loraprune.tasks.options import LoraOptions

EARLY = {"prune_start": 0.1, "prune_end": 0.3}
PAPER: dict[str, Any] = {
    "criterion": "lora", "allocation": "uniform", "repair": "none", "prune_start": 0.1, "prune_end": 0.9,
    "cut_every": 10, "average_bias_correction": False,
}  # fmt: skip
UNIFORM = {"allocation": "uniform"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row: what it is called, where it stands, and how it is run."""

    name: str
    block: str
    how: str = "joint"
    values: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)


def _published() -> list[Method]:
    block = "as published"
    first = {"criterion": "taylor", "repair": "none", **UNIFORM}
    samples = {"calibration_sequences": 10, "max_length": 64}
    return [
        Method(name="LoRAPrune, paper", block=block, values=PAPER),
        Method(
            name="LoRAPrune, authors' code",
            block=block,
            values={**PAPER, "lora_form": "absolute", "keep_layers": ("10%", -1)},
        ),
        Method(
            name="LLM-Pruner, block-wise",
            block=block,
            how="one shot",
            values={**first, "taylor_form": "first"},
            calibration=samples,
        ),
        Method(
            name="LLM-Pruner, channel-wise",
            block=block,
            how="one shot",
            values={**first, "taylor_form": "first", "dimensions": ("hidden",)},
            calibration=samples,
        ),
        Method(
            name="LLM-Pruner, layer-wise",
            block=block,
            how="one shot",
            values={"criterion": "position", "repair": "none", **UNIFORM, "dimensions": ("blocks",)},
        ),
        Method(
            name="Compresso", block=block, values={"criterion": "compresso", "repair": "none", "allocation": "global"}
        ),
        Method(
            name="FLAP, then LoRA",
            block=block,
            how="one shot",
            values={"criterion": "flap", "repair": "bias", "allocation": "global"},
        ),
        Method(
            name="Wanda, structured, then LoRA",
            block=block,
            how="one shot",
            values={"criterion": "wanda", "repair": "none", **UNIFORM},
        ),
        Method(
            name="magnitude, then LoRA",
            block=block,
            how="one shot",
            values={"criterion": "magnitude", "repair": "none", **UNIFORM},
        ),
        Method(name="PST (zeros)", block="zeros instead of shapes", values={"criterion": "pst"}),
        Method(
            name="Wanda, then LoRA (zeros)",
            block="zeros instead of shapes",
            how="sparse",
            values={"criterion": "wanda"},
        ),
        Method(
            name="SparseGPT, then LoRA (zeros)",
            block="zeros instead of shapes",
            how="sparse",
            values={"criterion": "sparsegpt"},
        ),
    ]


def _one_switch() -> list[Method]:
    names = ("fisher", "lora", "taylor", "magnitude", "wanda", "flap", "compresso", "random")
    block = "joint, early cuts, refit: the criterion alone changes"
    return [Method(name=f"`{name}`", block=block, values={"criterion": name, **UNIFORM}) for name in names]


def _ours() -> list[Method]:
    block = "ours"
    return [
        Method(name="plain LoRA, nothing removed", block=block, values={"ratio": 0.0}),
        Method(name="default (`fisher`, balanced)", block=block),
        Method(name="default, global", block=block, values={"allocation": "global"}),
        Method(
            name="one shot (`osscar`, stream), then LoRA", block=block, how="one shot", values={"criterion": "osscar"}
        ),
        Method(
            name="one shot (`osscar`, stream, global), then LoRA",
            block=block,
            how="one shot",
            values={"criterion": "osscar", "allocation": "global"},
        ),
        Method(name="depth: joint, `fisher`", block=block, values={"dimensions": ("blocks",), "repair": "none"}),
        Method(name="hidden size: joint, `fisher`", block=block, values={"dimensions": ("hidden",), "repair": "none"}),
    ]


METHODS = (*_published(), *_one_switch(), *_ours())


def joint(options: argparse.Namespace, method: Method, ratio: float) -> Any:
    """Prune while LoRA tunes."""
    values = {"ratio": ratio, **method.values, "seed": options.seed}
    return tuned(options, options.model, PruningConfig(**values))


def one_shot(options: argparse.Namespace, method: Method, ratio: float) -> Any:
    """Prune, then tune."""
    amount: dict[str, Any] = {"ratio": ratio} if method.how == "one shot" else {"sparsity": str(ratio)}
    calibration = {"calibration_sequences": 128, "max_length": options.max_length, **method.calibration}
    config = OneshotConfig(**amount, **method.values, **calibration, seed=options.seed)
    pruned = loraprune.oneshot(
        options.model, options.train, config, options=RunOptions(eval_sequences=0, latency=False)
    )
    if method.how == "sparse":
        return loraprune.recover(
            pruned.model,
            options.train,
            training=training(options),
            tokenizer=pruned.tokenizer,
            options=measured(options),
        )
    none = PruningConfig(ratio=0.0, repair="none", seed=options.seed)
    result = tuned(options, pruned.model, none, tokenizer=pruned.tokenizer)
    result.metrics["pruning"]["ratio"] = pruned.metrics["pruning"]["ratio"]
    return result


HOW: dict[str, Callable[[argparse.Namespace, Method, float], Any]] = {
    "joint": joint,
    "one shot": one_shot,
    "sparse": one_shot,
}


def training(options: argparse.Namespace) -> dict[str, Any]:
    """The budget of tuning, the same for all."""
    return {
        "max_steps": options.max_steps,
        "per_device_train_batch_size": options.batch_size,
        "max_length": options.max_length,
        "learning_rate": options.learning_rate,
        "warmup_steps": 0,  # as in the published tables
        "seed": options.seed,
    }


def measured(options: argparse.Namespace) -> RunOptions:
    """What is measured."""
    return RunOptions(eval_data=options.held_out, eval_sequences=options.eval_sequences, latency=options.latency)


def tuned(options: argparse.Namespace, model: Any, config: PruningConfig, tokenizer: Any = None) -> Any:
    """A run with LoRA."""
    return loraprune.prune(
        model,
        options.train,
        config,
        training=training(options),
        lora=LoraOptions(r=8),
        tokenizer=tokenizer,
        options=measured(options),
    )


def run_one(options: argparse.Namespace, method: Method, ratio: float) -> dict[str, Any]:
    """One row as plain values; an error is one too."""
    started = time.time()
    row: dict[str, Any] = {"model": options.name, "method": method.name, "block": method.block, "ratio": ratio}
    row |= {"seed": options.seed, "budget": budget(options)}
    try:
        metrics = HOW[method.how](options, method, ratio).metrics
    except Exception as error:
        logging.getLogger("comparison").debug(traceback.format_exc())
        return {**row, "error": f"{type(error).__name__}: {error}"}
    after = metrics["pruned"]
    row |= {"perplexity": after["perplexity"], "segment_length": after["segment_length"]}
    row["removed"] = (metrics.get("pruning") or {}).get("ratio")
    row["zeros"] = (metrics.get("sparsity") or {}).get("after", {}).get("share")
    row["parameters"] = after.get("parameters")
    if "latency_ms" in after:
        row["latency"] = after["latency_ms"] / metrics["dense"]["latency_ms"]
    return {**row, "seconds": time.time() - started}


def budget(options: argparse.Namespace) -> str:
    """What must agree for two rows to be comparable."""
    return (
        f"{options.max_steps} steps of {options.batch_size}×{options.max_length} tokens, "
        f"learning rate {options.learning_rate:g}"
    )


def table(rows: list[dict[str, Any]], name: str) -> str:
    """The rows of one model as a Markdown table: methods down, ratios across."""
    rows = [row for row in rows if row["model"] == name]
    ratios = sorted({row["ratio"] for row in rows})
    length = next((row["segment_length"] for row in rows if "perplexity" in row), "?")
    lines = [
        f"\n### {name}",
        f"{rows[0]['budget']}; perplexity at {length}-token "
        "segments, in brackets: the share really removed, if it is more than a point off",
        "",
        "| | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |",
        "|---|" + "---|" * len(ratios),
    ]
    for block in dict.fromkeys(method.block for method in METHODS):
        lines.append(f"| *{block}* |" + " |" * len(ratios))
        for method in METHODS:
            found = {row["ratio"]: row for row in rows if row["method"] == method.name}
            if method.block == block and found:
                cells = [cell(found[ratio]) if ratio in found else "–" for ratio in ratios]
                lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """Perplexity; what was removed where that is not what was asked for; the time of a forward pass where known."""
    if "error" in row:
        return "refused"
    reached = row["zeros"] if row.get("zeros") else row["removed"]
    off = reached is not None and reached > 0 and abs(reached - row["ratio"]) > 0.01
    latency = f"; {row['latency']:.2f} of the dense time" if row.get("latency") else ""
    return f"{row['perplexity']:.2f}" + (f" ({reached:.1%})" if off else "") + latency


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs; of a row that was tried again, the last."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({(row["model"], row["method"], row["ratio"], row["seed"]): row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--train")
    parser.add_argument("--held-out")
    parser.add_argument("--out", type=Path, default=Path("comparison.jsonl"))
    parser.add_argument("--only", nargs="+", help="methods by a part of their names")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--eval-sequences", type=int, default=256)
    parser.add_argument("--latency", action="store_true", help="measure the forward pass too")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--print", action="store_true", dest="print_only", help="only print the tables")
    options = parser.parse_args()
    options.name = Path(options.model).name if options.model != "demo" else "the bundled model"
    done = read_rows(options.out)
    if not options.print_only:
        if options.model == "demo":
            from loraprune.data.demo import demo_data, demo_model

            options.model = str(demo_model())
            options.train, options.held_out = (str(path) for path in demo_data(options.out.parent / "demo-text"))
        logging.getLogger("transformers").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        datasets.disable_progress_bars()
        for ratio in options.ratios:
            for method in METHODS:
                if options.only and not any(part in method.name for part in options.only):
                    continue
                same = ("model", "method", "ratio", "seed")
                key = (options.name, method.name, ratio, options.seed)
                if any(tuple(row[k] for k in same) == key and "error" not in row for row in done):
                    continue
                row = run_one(options, method, ratio)
                done.append(row)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(row.get("error") or f"{method.name}, {ratio:.0%}: {row['perplexity']:.2f}", flush=True)
        done = read_rows(options.out)
    for name in dict.fromkeys(row["model"] for row in done):
        print(table(done, name))


if __name__ == "__main__":
    main()
