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
        option("criterion", "pruning", "fisher, lora, taylor, magnitude, wanda, flap, random, compresso or pst; "
                "position keeps the first of whole blocks (fisher)"),
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
        option("prune_end", "pruning", "fraction of the run at which the last cut is made (0.3)", type=float),
        option("cuts", "pruning", "number of cuts (5)", type=int),
        option("cut_every", "pruning", "instead of a number of cuts: steps from one to the next", type=int),
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

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}
