"""The options of ``loraprune prune`` that are not training options, declared once and grouped as they are used."""

from __future__ import annotations

from pathlib import Path

from loraprune.cli.numbers import indices, names, parameter_count
from loraprune.cli.options import SWITCH, Option, option

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        option("data", "call", "training data: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files "
                "or of images by class, or a hub data set"),
        option("output", "run", "folder of the pruned checkpoint", type=Path),
        option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
        option("split", "run", "split of a hub data set (train)"),
        option("eval_split", "run", "split of a hub data set given as --eval-data (validation)"),
        option("data_name", "run", "configuration of a hub data set"),
        option("eval_data", "run", "data to measure on (default: a twentieth of the training data)"),
        option("eval_sequences", "run", "rows to measure on, 0 for none (64; 1000 for classifiers)", type=int),
        option("answers_only", "run", "of instructions and chats, train on the answers alone (on)", **SWITCH),
        option("overwrite", "run", "replace what the output folder holds, and forget an interrupted run", **SWITCH),
        option("resume", "run", "go on with the interrupted run of this output folder", **SWITCH),
        option("trust_remote_code", "run", "run code that the checkpoint brings (off)", **SWITCH),
        option("revision", "run", "branch, tag or commit of a hub checkpoint"),
    ),
    "pruning": (
        option("ratio", "pruning", "share of the prunable parameters that goes (0.5)", type=float),
        option("target_params", "run", "instead of a ratio: parameters of the result, such as 4.5B",
                type=parameter_count),
        option("criterion", "pruning", "fisher, lora, magnitude or random (fisher)"),
        option("lora_form", "pruning", "criterion lora as in the paper (squared) or its code (absolute)"),
        option("allocation", "pruning", "balanced: attention and FFN share the cut as their importance says; "
                "uniform: both lose the same share; global: layers compete too, and their widths differ (balanced)"),
        option("dimensions", "pruning", "kinds of dimensions to prune, such as query_heads,channels (by family; "
                "loraprune inspect lists them)", type=names),
        option("keep_layers", "pruning", "layers that keep everything, such as 0,1,-1 (none)", type=indices),
        option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path),
        option("prune_start", "pruning", "fraction of the run before the first cut (0.1)", type=float),
        option("prune_end", "pruning", "fraction of the run at which the last cut is made (0.3)", type=float),
        option("cuts", "pruning", "number of cuts (5)", type=int),
        option("refit", "pruning", "repair layers by least squares after a cut (on)", **SWITCH),
        option("refit_damping", "pruning", "ridge of the refit, as a share of the mean diagonal (0.01)", type=float),
        option("calibration_sequences", "pruning", "training sequences that the refit looks at (128)", type=int),
        option("channel_multiple", "pruning", "round FFN widths to a multiple (by size)", type=int),
        option("head_rounding", "pruning", "config: head counts that the model's config accepts; any: export a Llama "
                "as a Mistral if need be (config)", choices=("config", "any")),
        option("average_decay", "pruning", "moving average of the scores, lambda (0.9)", type=float),
        option("average_bias_correction", "pruning", "divide out the average's start from zero (on)", **SWITCH),
        option("apply", "pruning", "slice: cut tensors while training; mask: multiply with zeros, cut at the end "
                "(slice)", choices=("slice", "mask")),
        option("max_skipped_steps", "pruning", "steps in a row with NaN or Inf before the run stops (5)", type=int),
    ),
    "LoRA": (
        option("lora_r", "lora", "rank (8)", field="r", type=int),
        option("lora_alpha", "lora", "alpha (16)", field="alpha", type=int),
        option("lora_dropout", "lora", "dropout (0)", field="dropout", type=float),
        option("lora_target_modules", "lora", "layers to adapt (all projections of the blocks)",
                field="target_modules", nargs="+"),
        option("lora_experts", "lora", "adapt the stacked experts of a mixture too (off)", field="experts", **SWITCH),
    ),
    "what is measured and kept": (
        option("latency", "run", "measure the forward pass, dense and pruned (on)", **SWITCH),
        option("measure_unrecovered", "run", "also measure the same cut without tuning (off)", field="unrecovered",
                **SWITCH),
        option("prompt", "run", "text that both models go on from, for the report"),
        option("report", "run", "write report.html and report.json (on)", **SWITCH),
        option("save_adapter", "run", "also save the unmerged adapter and the plan (off)", **SWITCH),
        option("keep_run", "run", "keep the run's checkpoints after the end (off)", **SWITCH),
        option("quiet", "call", "results only", **SWITCH),
    ),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}

TRAINING_HELP = """training options, as trl's SFTConfig names them (nearly all of its fields can be given):
  --max-steps, --num-train-epochs (2), --per-device-train-batch-size (8), --gradient-accumulation-steps (1),
  --learning-rate (1e-4), --lr-scheduler-type (cosine), --warmup-steps, --weight-decay, --max-grad-norm,
  --max-length (1024, or the model's context), --seed (42), --bf16, --gradient-checkpointing,
  --logging-steps (5), --save-steps (100), --report-to (none), ...
"""
