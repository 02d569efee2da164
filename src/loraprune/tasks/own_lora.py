"""A caller's own peft configuration of the adapter. Values that a run does not support are rejected at its start."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from loraprune.pruning.config import PruningConfig
from loraprune.tasks.lora import check_rank
from loraprune.tasks.options import LoraOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

REFUSED = {
    "lora_bias": "the adapter could not be merged",
    "layer_replication": "the result is an ordinary checkpoint, whose layers have weights of their own",
    "megatron_config": "the model is one of transformers",
    "inference_mode": "nothing could be trained",
    "alora_invocation_tokens": "the adapter could not be merged",
    "arrow_config": "the adapter could not be merged",
    "use_bdlora": "the adapter could not be merged",
    "monteclora_config": "the adapter could not be merged",
}
"""Fields of peft's LoraConfig that a run does not support, and why."""

FROM_DATA = ("eva", "corda", "lora_ga", "loftq")
"""Initializations of the adapter that peft computes in a separate call before training."""


def own_config(given: LoraConfig, shapes: nn.Module, pruning: PruningConfig) -> LoraConfig:
    """Check and copy a caller's configuration, because peft would change the original.

    Args:
        given: configuration of the caller.
        shapes: the model on the meta device.
        pruning: pruning options of the run.

    Raises:
        ValueError: a field is not supported or has an invalid value; the message names the field.
    """
    for name, why in REFUSED.items():
        if getattr(given, name, None):
            raise ValueError(f"LoraConfig has {name}={getattr(given, name)!r}: {why}. Leave it out.")
    if given.init_lora_weights in FROM_DATA:
        raise ValueError(
            f"LoraConfig has init_lora_weights={given.init_lora_weights!r}, which peft computes from data or weights "
            "before training, and a run does not. Leave it out."
        )
    if given.use_dora and (pruning.repairs or pruning.criterion.reads_effective_weights):
        raise ValueError(
            "LoraConfig has use_dora=True, and the weight of DoRA is not W + s·B·A. With it, use the criterion 'fisher'"
            " or 'random' and repair='none' (--repair none)."
        )
    LoraOptions(r=given.r, alpha=given.lora_alpha, dropout=given.lora_dropout)
    check_rank(given.r, shapes)
    _check_targets(given, shapes)
    return copy.deepcopy(given)


def _check_targets(given: LoraConfig, shapes: nn.Module) -> None:
    """Check that the model has a module for every name that the adapter targets."""
    targets: Any = given.target_modules
    if not targets or isinstance(targets, str):
        return
    names = [name for name, _ in shapes.named_modules()]
    unknown = sorted(
        target for target in targets if not any(re.search(rf"(^|\.){re.escape(target)}$", name) for name in names)
    )
    if unknown and len(unknown) == len(targets):
        raise ValueError(f"LoraConfig has target_modules {', '.join(unknown)}, and the model has no such module.")
