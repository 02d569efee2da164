"""The options of ``loraprune prune`` that are not training options, declared once and grouped as they are used."""

from __future__ import annotations

from loraprune.cli.numbers import indices, names, parameter_count
from loraprune.cli.options import SWITCH, Option, option
from loraprune.cli.training_options import ARCHITECTURE, LORA, kept, max_skipped_steps, sources

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": sources("pruned checkpoint"),
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
        ARCHITECTURE,
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
        max_skipped_steps("pruning"),
    ),
    "LoRA": LORA,
    "what is measured and kept": (
        option("latency", "run", "measure the forward pass, dense and pruned (on)", **SWITCH),
        option("measure_unrecovered", "run", "also measure the same cut without tuning (off)", field="unrecovered",
                **SWITCH),
        *kept("the unmerged adapter and the plan"),
    ),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}
