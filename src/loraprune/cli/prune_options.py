"""The options of ``loraprune prune`` that are not training options, declared once and grouped as they are used."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprune.cli.numbers import indices, names, parameter_count


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: its key in a recipe file; the flag is the same with dashes.
        target: what it sets: a field of ``pruning``, ``run``, ``lora``, or the ``call`` itself.
        field: the field's name where it differs.
        help: one line.
        extra: for argparse.
    """

    name: str
    target: str
    help: str
    extra: dict[str, Any]
    field: str | None = None

    @property
    def flag(self) -> str:
        """As typed."""
        return "--" + self.name.replace("_", "-")


def _option(name: str, target: str, help: str, *, field: str | None = None, **extra: Any) -> Option:
    return Option(name, target, help, extra, field)


_SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        _option("data", "call", "training data: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files "
                "or of images by class, or a hub data set"),
        _option("output", "run", "folder of the pruned checkpoint", type=Path),
        _option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        _option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
        _option("split", "run", "split of a hub data set (train)"),
        _option("eval_split", "run", "split of a hub data set given as --eval-data (validation)"),
        _option("data_name", "run", "configuration of a hub data set"),
        _option("eval_data", "run", "data to measure on (default: a twentieth of the training data)"),
        _option("eval_sequences", "run", "rows to measure on, 0 for none (64; 1000 for classifiers)", type=int),
        _option("answers_only", "run", "of instructions and chats, train on the answers alone (on)", **_SWITCH),
        _option("overwrite", "run", "replace what the output folder holds, and forget an interrupted run", **_SWITCH),
        _option("resume", "run", "go on with the interrupted run of this output folder", **_SWITCH),
        _option("trust_remote_code", "run", "run code that the checkpoint brings (off)", **_SWITCH),
        _option("revision", "run", "branch, tag or commit of a hub checkpoint"),
    ),
    "pruning": (
        _option("ratio", "pruning", "share of the prunable parameters that goes (0.5)", type=float),
        _option("target_params", "run", "instead of a ratio: parameters of the result, such as 4.5B",
                type=parameter_count),
        _option("criterion", "pruning", "fisher, lora, magnitude or random (fisher)"),
        _option("lora_form", "pruning", "criterion lora as in the paper (squared) or its code (absolute)"),
        _option("allocation", "pruning", "balanced: attention and FFN share the cut as their importance says; "
                "uniform: both lose the same share; global: layers compete too, and their widths differ (balanced)"),
        _option("dimensions", "pruning", "kinds of dimensions to prune, such as query_heads,channels (by family; "
                "loraprune inspect lists them)", type=names),
        _option("keep_layers", "pruning", "layers that keep everything, such as 0,1,-1 (none)", type=indices),
        _option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path),
        _option("prune_start", "pruning", "fraction of the run before the first cut (0.1)", type=float),
        _option("prune_end", "pruning", "fraction of the run at which the last cut is made (0.3)", type=float),
        _option("cuts", "pruning", "number of cuts (5)", type=int),
        _option("refit", "pruning", "repair layers by least squares after a cut (on)", **_SWITCH),
        _option("refit_damping", "pruning", "ridge of the refit, as a share of the mean diagonal (0.01)", type=float),
        _option("calibration_sequences", "pruning", "training sequences that the refit looks at (128)", type=int),
        _option("channel_multiple", "pruning", "round FFN widths to a multiple (by size)", type=int),
        _option("head_rounding", "pruning", "config: head counts that the model's config accepts; any: export a Llama "
                "as a Mistral if need be (config)", choices=("config", "any")),
        _option("average_decay", "pruning", "moving average of the scores, lambda (0.9)", type=float),
        _option("average_bias_correction", "pruning", "divide out the average's start from zero (on)", **_SWITCH),
        _option("apply", "pruning", "slice: cut tensors while training; mask: multiply with zeros, cut at the end "
                "(slice)", choices=("slice", "mask")),
        _option("max_skipped_steps", "pruning", "steps in a row with NaN or Inf before the run stops (5)", type=int),
    ),
    "LoRA": (
        _option("lora_r", "lora", "rank (8)", field="r", type=int),
        _option("lora_alpha", "lora", "alpha (16)", field="alpha", type=int),
        _option("lora_dropout", "lora", "dropout (0)", field="dropout", type=float),
        _option("lora_target_modules", "lora", "layers to adapt (all projections of the blocks)",
                field="target_modules", nargs="+"),
        _option("lora_experts", "lora", "adapt the stacked experts of a mixture too (off)", field="experts", **_SWITCH),
    ),
    "what is measured and kept": (
        _option("latency", "run", "measure the forward pass, dense and pruned (on)", **_SWITCH),
        _option("measure_unrecovered", "run", "also measure the same cut without tuning (off)", field="unrecovered",
                **_SWITCH),
        _option("prompt", "run", "text that both models go on from, for the report"),
        _option("report", "run", "write report.html and report.json (on)", **_SWITCH),
        _option("save_adapter", "run", "also save the unmerged adapter and the plan (off)", **_SWITCH),
        _option("keep_run", "run", "keep the run's checkpoints after the end (off)", **_SWITCH),
        _option("quiet", "call", "results only", **_SWITCH),
    ),
}  # fmt: skip

OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}

TRAINING_HELP = """training options, as trl's SFTConfig names them (nearly all of its fields can be given):
  --max-steps, --num-train-epochs (2), --per-device-train-batch-size (8), --gradient-accumulation-steps (1),
  --learning-rate (1e-4), --lr-scheduler-type (cosine), --warmup-steps, --weight-decay, --max-grad-norm,
  --max-length (1024, or the model's context), --seed (42), --bf16, --gradient-checkpointing,
  --logging-steps (5), --save-steps (100), --report-to (none), ...
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every option, in its group, without defaults: what was not given must not hide a recipe's value."""
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="a checkpoint's folder or its hub name")
    parser.add_argument("--config", default=argparse.SUPPRESS, type=Path, metavar="RECIPE.yaml",
                        help="recipe file: the same names as the options; options given here win")  # fmt: skip
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            flags = [option.flag]
            if option.name in ("output", "quiet"):
                flags.insert(0, f"-{option.name[0]}")
            group.add_argument(
                *flags, dest=option.name, default=argparse.SUPPRESS, help=option.help.replace("%", "%%"), **option.extra
            )
