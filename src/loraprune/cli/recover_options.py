"""The options of ``loraprune recover`` that are not training options, declared once and grouped as they are used."""

from __future__ import annotations

from loraprune.cli.options import SWITCH, Option, option
from loraprune.cli.training_options import ARCHITECTURE, LORA, kept, max_skipped_steps, sources

GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": sources("tuned checkpoint"),
    "recovery": (
        option("keep_zeros", "recovery", "weights of the blocks' linear layers that are zero stay zero, in training "
               "and in the merge (on where the model is sparse)", **SWITCH),
        max_skipped_steps("recovery"),
        ARCHITECTURE,
    ),
    "LoRA": LORA,
    "what is kept": kept("the unmerged adapter"),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}
