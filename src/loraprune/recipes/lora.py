"""The adapter of a run: peft's LoraConfig from a few options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.structure import Structure

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """LoRA as in the LoRAPrune paper, unless set otherwise.

    Attributes:
        r: rank.
        alpha: ``B·A`` is scaled by ``alpha / r``.
        dropout: on the adapter's input. Above 0 it costs one more stored tensor for each consumer while the
            criterion ``fisher`` listens.
        target_modules: names of the layers to adapt; None adapts every layer that belongs to a group.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"The rank of LoRA is {self.r}; it must be at least 1.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"The dropout of LoRA is {self.dropout}; it must lie in [0, 1).")


def lora_config(options: LoraOptions, structure: Structure) -> LoraConfig:
    """Build peft's configuration.

    Raises:
        ValueError: a layer that is named is none of the model's blocks; the message lists those there are.
    """
    from peft import LoraConfig

    present = sorted({member.module.rpartition(".")[2] for dimension in structure for member in dimension.all_members})
    targets = list(options.target_modules) if options.target_modules else present
    unknown = [name for name in targets if name not in present]
    if unknown:
        raise ValueError(f"LoRA cannot adapt {', '.join(unknown)}: the layers of the blocks are {', '.join(present)}.")
    return LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
