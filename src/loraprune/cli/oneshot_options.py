"""The options of ``loraprune oneshot``, declared once and grouped as they are used."""

from __future__ import annotations

from pathlib import Path

from loraprune.cli.numbers import indices, names, parameter_count
from loraprune.cli.options import SWITCH, Option, option

FORMATS = ("dense", "semi-structured", "compressed-tensors")

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        option("data", "call", "calibration data: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files "
               "or of images by class, or a hub data set"),
        option("output", "run", "folder of the pruned checkpoint", type=Path),
        option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
        option("split", "run", "split of a hub data set (train)"),
        option("eval_split", "run", "split of a hub data set given as --eval-data (validation)"),
        option("data_name", "run", "configuration of a hub data set"),
        option("eval_data", "run", "data to measure on (default: a twentieth of the calibration data)"),
        option("eval_sequences", "run", "rows to measure on, 0 for none (64; 1000 for classifiers)", type=int),
        option("overwrite", "run", "replace what the output folder holds", **SWITCH),
        option("trust_remote_code", "run", "run code that the checkpoint brings (off)", **SWITCH),
        option("revision", "run", "branch, tag or commit of a hub checkpoint"),
    ),
    "how much goes: one of these": (
        option("ratio", "oneshot", "share of the prunable parameters that goes: fewer heads and channels", type=float),
        option("target_params", "run", "instead of a ratio: parameters of the result, such as 4.5B",
               type=parameter_count),
        option("sparsity", "oneshot", "share of weights that become zero, such as 0.5, or N:M, such as 2:4 (N of every "
               "M consecutive weights of a row)"),
    ),
    "how": (
        option("method", "oneshot", "with --ratio: osscar, fisher, taylor, flap, wanda, magnitude, random, and of "
               "whole blocks position (osscar; fisher for blocks and the hidden size); "
               "with --sparsity: sparsegpt, wanda, magnitude, wanda+obs, magnitude+obs (sparsegpt)"),
        option("keep_layers", "oneshot", "layers that keep everything, such as 0-3,-1; 10%: the first tenth (none)",
                type=indices),
        option("damping", "oneshot", "of refit, osscar and sparsegpt, as a share of the mean diagonal (0.01)",
               type=float),
        option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path),
    ),
    "how, with --ratio": (
        option("repair", "oneshot", "stream: least squares towards the dense model's residual stream; refit: towards "
               "each layer's own output; bias: the mean of what goes; none (stream)"),
        option("allocation", "oneshot", "uniform, balanced or global, as in loraprune prune (uniform)"),
        option("dimensions", "oneshot", "kinds of dimensions to prune, such as query_heads,channels, or whole "
               "blocks, or hidden for the hidden size (by family)",
               type=names),
        option("taylor_form", "oneshot", "of taylor: squared, or LLM-Pruner's first, second, mix, vectorize (squared)"),
        option("group_reduction", "oneshot", "of taylor and magnitude: sum, mean, max, prod, first or last of the "
               "layers of a group (sum)"),
        option("offload_grads", "oneshot", "of taylor: gradients are kept in the machine's memory (off)", **SWITCH),
        option("cuts", "oneshot", "steps in which the ratio is reached, scored anew before each (1)", type=int),
        option("channel_multiple", "oneshot", "round FFN widths to a multiple (by size)", type=int),
        option("head_rounding", "oneshot", "config: head counts that the model's config accepts; any: export a Llama "
               "as a Mistral if need be (config)", choices=("config", "any")),
    ),
    "how, with --sparsity": (
        option("within", "oneshot", "of wanda and magnitude: compare the weights of a row, or of the matrix (wanda: "
               "row, magnitude: matrix)"),
        option("variant", "oneshot", "of wanda: rows lose the same share of their scores (off)", **SWITCH),
        option("order", "oneshot", "of wanda+obs and magnitude+obs: sequential chooses the weights before any update, "
               "iterative block by block (sequential)"),
        option("block_size", "oneshot", "columns that sparsegpt compares and updates together (128)", type=int),
        option("format", "call", "dense: a plain checkpoint with zeros; for 2:4 also semi-structured (torch, on "
               "hardware that has it) or compressed-tensors (dense)", choices=FORMATS),
    ),
    "calibration": (
        option("calibration_sequences", "oneshot", "rows of the data that are looked at (128)", type=int),
        option("max_length", "oneshot", "tokens of a row at most (2048, or the model's context)", type=int),
        option("seed", "oneshot", "of what is drawn from the data (42)", type=int),
        option("offload", "oneshot", "keep weights and hidden states in the machine's memory, and one block at a time "
               "on the accelerator (off)", **SWITCH),
    ),
    "what is measured and kept": (
        option("latency", "run", "measure the forward pass, dense and pruned, with --ratio (on)", **SWITCH),
        option("prompt", "run", "text that both models go on from, for the report"),
        option("report", "run", "write report.html and report.json (on)", **SWITCH),
        option("quiet", "call", "results only", **SWITCH),
    ),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}
