"""``loraprune prune``: prune a checkpoint while LoRA tunes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.cli.console import results_console
from loraprune.cli.options import SWITCH, Option, fields_of, indices, names, option, parameter_count
from loraprune.cli.training_options import (
    ARCHITECTURE,
    LORA,
    Invocation,
    TrainingCommand,
    kept,
    max_skipped_steps,
    sources,
)

# The options of ``loraprune prune`` that are not training options, declared once and grouped as they are used.

_GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": sources("pruned checkpoint"),
    "pruning": (
        option("ratio", "pruning", "share of the prunable parameters that goes (0.5)", type=float),
        option("target_params", "run", "instead of a ratio: parameters of the result, such as 4.5B",
                type=parameter_count),
        option("criterion", "pruning", "fisher, lora, taylor, magnitude, wanda, flap, random, compresso or pst; osscar "
                "before the first step; position keeps the first of whole blocks (fisher)"),
        option("taylor_form", "pruning", "criterion taylor: squared (LoRAPrune's vanilla one), or LLM-Pruner's first, "
                "second, mix, vectorize (squared)"),
        option("group_reduction", "pruning", "taylor, lora and magnitude: sum, mean, max, prod, first or last of the "
                "layers of a group (sum)"),
        option("offload_grads", "pruning", "taylor: gradients that wait do so in the machine's memory (off)", **SWITCH),
        option("lora_form", "pruning", "criterion lora as in the paper (squared) or its code (absolute)"),
        option("allocation", "pruning", "balanced: attention and FFN share the cut as their importance says; "
                "uniform: both lose the same share; global: layers compete too, and their widths differ (balanced)"),
        option("dimensions", "pruning", "kinds of dimensions to prune, such as query_heads,channels, or whole "
                "blocks, or hidden for the hidden size (by family; loraprune inspect lists them)", type=names),
        option("keep_layers", "pruning", "layers that keep everything, such as 0-3,-1; 10%: the first tenth (none)",
                type=indices),
        ARCHITECTURE,
        option("prune_start", "pruning", "fraction of the run before the first cut (0.1)", type=float),
        option("prune_end", "pruning", "fraction of the run at which the last cut is made; 0: all before the first "
                "step, as oneshot cuts (0.3; 0 with --prune-start 0 --cuts 1)", type=float),
        option("cuts", "pruning", "number of cuts (5)", type=int),
        option("cut_every", "pruning", "instead of a number of cuts: steps from one to the next", type=int),
        option("repair", "pruning", "what is done to layers after a cut: refit (least squares: what each gave itself), "
                "stream (towards the residual stream before the cut), bias (FLAP's compensation) or none (refit)",
                old="refit"),
        option("damping", "pruning", "ridge of the least squares, as a share of the mean diagonal (0.01)", type=float,
                old="refit_damping"),
        option("calibration_sequences", "pruning", "training sequences that the repair looks at (128)", type=int),
        option("channel_multiple", "pruning", "round FFN widths to a multiple (by size)", type=int),
        option("head_counts", "pruning", "config: head counts that the model's config accepts; any: export a Llama "
                "as a Mistral if need be (config)", choices=("config", "any"), old="head_rounding"),
        option("average_decay", "pruning", "moving average of the scores, lambda (0.9)", type=float),
        option("average_bias_correction", "pruning", "divide out the average's start from zero (on)", **SWITCH),
        option("apply", "pruning", "slice: cut tensors while training; mask: multiply with zeros, cut at the end "
                "(slice)", choices=("slice", "mask")),
        max_skipped_steps("pruning"),
    ),
    "criterion pst (single weights become zero)": (
        option("pst_rank", "pst", "rank of the learnt part of the scores (8)", field="rank", type=int),
        option("pst_low_rank_weight", "pst", "alpha1: what the low-rank part counts (1)", field="low_rank_weight",
                type=float),
        option("pst_structured_weight", "pst", "alpha2: what the parts of rows and columns count (1)",
                field="structured_weight", type=float),
        option("pst_learning_rate", "pst", "of the scores (that of the adapter)", field="learning_rate", type=float),
    ),
    "criterion compresso": (
        option("compresso_learning_rate", "compresso", "of the gates (0.5)", field="learning_rate",
                type=float),
        option("compresso_multiplier_learning_rate", "compresso", "of the Lagrange multipliers (0.5)",
                field="multiplier_learning_rate", type=float),
        option("compresso_warmup", "compresso", "share of the steps before the cut over which the target rises (0.5)",
                field="warmup", type=float),
        option("compresso_ramp", "compresso", "how it rises (linear)", field="ramp", choices=("linear", "cubic")),
        option("compresso_initial_drop", "compresso", "how far gates are closed at the start (0.01)",
                field="initial_drop", type=float),
        option("pruning_prompt", "compresso", "text before every row of the data, or 'default' for ours (none)",
                field="prompt"),
    ),
    "quantized base": (
        option("load_in_8bit", "call", "quantize the base by LLM.int8 of bitsandbytes while it is pruned (off)",
                **SWITCH),
        option("load_in_4bit", "call", "quantize the base to NF4 with double quantization (off)", **SWITCH),
        option("quantization", "run", "bnb-8bit or bnb-4bit, which the two switches stand for, or torchao-int8 (none)"),
        option("keep_quantized", "run", "save the result quantized, too, instead of in the checkpoint's dtype (off)",
                **SWITCH),
    ),
    "LoRA": LORA,
    "what is measured and kept": (
        option("latency", "run", "measure the forward pass, dense and pruned (on)", **SWITCH),
        option("measure_unrecovered", "run", "also measure the same cut without tuning (off)", field="unrecovered",
                **SWITCH),
        *kept("the unmerged adapter and the plan"),
    ),
}  # fmt: skip

PRUNE_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}


def prune_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


SHORT_FORMS = {"load_in_8bit": "bnb-8bit", "load_in_4bit": "bnb-4bit"}


def settle_quantization(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Turn the short forms into the quantization that they stand for; those of the command line win.

    Raises:
        ValueError: two different ones were given in the same place.
    """
    for place in (given, values):
        short = {full for name, full in SHORT_FORMS.items() if place.get(name)}
        found = short | ({place["quantization"]} if place.get("quantization") else set())
        if len(found) > 1:
            raise ValueError(
                f"The base is quantized in one way only, and {' and '.join(sorted(found))} were given. Leave one out."
            )
        if found:
            values["quantization"] = found.pop()
            break
    for name in SHORT_FORMS:
        values.pop(name, None)


NOT_OF_ZEROS = {
    "cuts": "--cut-every says how many steps lie between two masks",
    "repair": "no group goes that a layer could make up for",
    "latency": "shapes stay, and plain inference is no faster",
}
"""Options that can do nothing where single weights become zero, and why."""


def _check_unstructured(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse what the command line asks for and the criterion ``pst`` does not do.

    Raises:
        ValueError: something of that was given.
    """
    if values.get("criterion") != "pst":
        return
    for name, why in NOT_OF_ZEROS.items():
        if given.get(name) and given[name] != "none":
            raise ValueError(f"--{name} is nothing for the criterion 'pst': {why}. Leave it out.")


def _settle(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Let one way to say how much goes replace the other one in a recipe.

    Raises:
        ValueError: both were given in the same place.
    """
    if "target_params" in given and "ratio" not in given:
        values.pop("ratio", None)
    if "ratio" in given and "target_params" not in given:
        values.pop("target_params", None)
    if values.get("target_params") is not None and "ratio" in values:
        raise ValueError("--ratio and --target-params say the same thing; give one of them.")
    settle_quantization(values, given)
    _check_unstructured(values, given)


def _work(asked: Invocation) -> None:
    from loraprune.cli.console import show_result
    from loraprune.cli.progress import TrainingProgress
    from loraprune.pruning.config import PruningConfig
    from loraprune.recipes.prune import prune
    from loraprune.tasks.lora import LoraOptions
    from loraprune.tasks.options import RunOptions

    values = asked.values
    pruning = fields_of(PRUNE_OPTIONS, values, "pruning")
    if pruning.get("ratio") == 0.0:
        raise ValueError(
            "ratio is 0, which removes nothing: it must lie between 0 and 1 (loraprune recover tunes without pruning)."
        )
    pruning["pst"] = fields_of(PRUNE_OPTIONS, values, "pst")
    pruning["compresso"] = fields_of(PRUNE_OPTIONS, values, "compresso")
    progress = TrainingProgress(asked.console, quiet=asked.quiet)
    try:
        result = prune(
            values["model"],
            values["data"],
            PruningConfig(**pruning),
            training=asked.training,
            lora=LoraOptions(**fields_of(PRUNE_OPTIONS, values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(**fields_of(PRUNE_OPTIONS, values, "run"), command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)


_COMMAND = TrainingCommand(
    name="prune",
    description="Prune a model while LoRA tunes it, and write an ordinary checkpoint with fewer heads and channels.",
    usage="loraprune prune MODEL --data DATA [--ratio 0.5] -o OUT [options]",
    example="loraprune prune MODEL --data DATA -o OUT",
    groups=_GROUPS,
    work=_work,
    settle=_settle,
)
