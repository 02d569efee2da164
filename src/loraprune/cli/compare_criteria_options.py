"""The options of ``loraprune compare-criteria`` that are not training options, declared once."""

from __future__ import annotations

from pathlib import Path

from loraprune.cli.numbers import names, numbers
from loraprune.cli.options import SWITCH, Option, option
from loraprune.cli.prune_options import OPTIONS as PRUNING
from loraprune.cli.training_options import ARCHITECTURE, LORA, sources

DATA = ("data", "tokenizer", "image_processor", "split", "data_name", "answers_only", "trust_remote_code", "revision")
"""Options of a training run that say what goes in; nothing of a comparison is measured or resumed."""

SHARED = (
    "dimensions",
    "keep_layers",
    "average_decay",
    "average_bias_correction",
    "lora_form",
    "taylor_form",
    "group_reduction",
    "offload_grads",
)
"""Options of ``loraprune prune`` that mean the same here."""

QUANTIZED = ("load_in_8bit", "load_in_4bit", "quantization")

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        *(item for item in sources("") if item.name in DATA),
        option("output", "call", "JSON file of the agreement (none)", type=Path),
    ),
    "comparison": (
        option("criteria", "pruning", "criteria, at least two; the first is compared with the others first "
               "(lora,fisher,taylor)", type=names),
        option("ratios", "pruning", "sparsity ratios (0.1,0.2,0.3,0.4,0.5)", type=numbers),
        option("steps", "pruning", "training steps that the criteria watch (20)", type=int),
        option("allocation", "pruning", "uniform: every criterion removes equally many groups of each layer; "
               "balanced, global: as many as its scores say (uniform)"),
        *(PRUNING[name] for name in SHARED if name in PRUNING),
        ARCHITECTURE,
    ),
    "quantized base": tuple(PRUNING[name] for name in QUANTIZED if name in PRUNING),
    "LoRA": LORA,
    "what is shown": (option("quiet", "call", "results only", **SWITCH),),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}
