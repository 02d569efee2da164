"""The layers of PST: LoRA layers whose weight is ``(W + s·B·A) ⊙ M`` with a learned mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import Embedding, Linear, LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraprune.importance.configs import Pst
from loraprune.layers.unwrap import base_model
from loraprune.sparsity.masked_lora import HARMLESS_INITS, PLAIN_DTYPES, ZeroKeepingLinear
from loraprune.sparsity.masked_product import Factors
from loraprune.sparsity.pst import LearntScores, kept_highest, pst_product, pst_score

if TYPE_CHECKING:
    from peft import LoraConfig

    from loraprune.structure.dimensions import Structure


class PstLinear(Linear):
    """peft's LoRA layer on a linear layer (``nn.Linear`` or ``Conv1D``) whose weights are masked.

    Scores and mask are not parameters of the module, so neither the Trainer's optimizer nor peft's saving sees them.

    Attributes:
        kept: mask, shape ``(out, in)``; None keeps everything.
        learnt: learned scores; None once the mask is final.
        options: options of the scores.
    """

    kept: torch.Tensor | None = None
    learnt: LearntScores | None = None
    options: Pst = Pst()

    def weight_oi(self) -> torch.Tensor:
        """Return the base weight as (out, in)."""
        base: Any = self.get_base_layer()
        weight: torch.Tensor = base.weight
        return weight.T if self.fan_in_fan_out else weight

    def factors(self) -> Factors:
        """Return A, B and the scaling of the only adapter."""
        (name,) = self.lora_A
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return a.weight, b.weight, float(self.scaling[name])

    def mask_(self, ratio: float) -> None:
        """Update the mask: remove this share of the weights."""
        assert self.learnt is not None
        score_OI = pst_score(self.weight_oi(), [self.factors()], self.learnt, self.options)
        self.kept = kept_highest(score_OI, ratio)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return ``x·((W + s·B·A) ⊙ M)ᵀ`` plus the bias, or the output of the dense base if the adapter is off."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapter_names: PST trains one adapter, and a batch for several cannot be masked.")
        result = pst_product(x, self.weight_oi(), self.kept, self.factors(), self.learnt, self.options)
        base: Any = self.get_base_layer()
        return result if base.bias is None else result + base.bias.to(result.dtype)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the difference from W to ``(W + s·B·A) ⊙ M``: the update where weights stay, and -W elsewhere.

        For a merged layer, return only the update, so unmerging leaves zeros at the removed weights.
        """
        base: Any = self.get_base_layer()
        delta = super().get_delta_weight(adapter)
        if self.kept is None:
            return delta
        kept = (self.kept.T if self.fan_in_fan_out else self.kept).to(delta.device)
        gone = torch.zeros_like(delta) if self.merged else base.weight.to(delta.dtype).neg()
        return torch.where(kept, delta, gone)

    def resolve_lora_variant(self, **kwargs: Any) -> Any:
        """Reject adapters that are added later."""
        raise ValueError("PST trains one adapter, and a second one has no mask. Merge the first one before adding it.")


def check_adapter(config: LoraConfig) -> None:
    """Check that an adapter can be masked, before any model is loaded.

    Raises:
        ValueError: it cannot be masked.
    """
    init = config.init_lora_weights
    reasons = {
        "use_dora=True": bool(config.use_dora),
        f"init_lora_weights={init!r}": isinstance(init, str) and init.lower() not in HARMLESS_INITS,
        "target_parameters (mostly stacked experts)": bool(getattr(config, "target_parameters", None)),
        "lora_bias=True": bool(getattr(config, "lora_bias", False)),
        f"lora_dropout={config.lora_dropout:g}": config.lora_dropout > 0.0,
    }
    for what, is_so in reasons.items():
        if is_so:
            raise ValueError(f"The criterion 'pst' masks the sum W + s·B·A of plain LoRA. Leave out {what}.")


def pst_layers_(
    model: nn.Module, structure: Structure, options: Pst, keep: frozenset[int], seed: int
) -> dict[str, PstLinear]:
    """Turn the LoRA layers in a model's blocks into PST layers, in place.

    Args:
        model: model with an adapter that is not merged.
        structure: structure of the model.
        options: options of the scores.
        keep: numbers of blocks that stay dense.
        seed: seed of the random start of V.

    Returns:
        The layers by their name in the model without adapter.

    Raises:
        ValueError: a layer cannot be masked. In this case nothing is changed.
    """
    adapters = getattr(model, "peft_config", {})
    if len(adapters) > 1:
        raise ValueError(
            f"The criterion 'pst' trains one adapter, but the model has {', '.join(adapters)}. Merge or delete the "
            "others."
        )
    for config in adapters.values():
        if config.peft_type != "LORA":
            raise ValueError(f"The criterion 'pst' needs LoRA, but the adapter is of type {config.peft_type.value}.")
        check_adapter(config)
    base = base_model(model)
    found: dict[str, Any] = {}
    for number, block in enumerate(structure.blocks):
        for name, module in base.get_submodule(block).named_modules(prefix=block):
            if isinstance(module, LoraLayer) and not isinstance(module, Embedding) and number not in keep:
                _check_layer(name, module)
                found[name] = module
    if not found:
        raise ValueError("The criterion 'pst' masks layers that LoRA adapts, but no layer of the blocks is adapted.")
    generator = torch.Generator().manual_seed(seed)
    for module in found.values():
        if module.__class__ is PstLinear and module.learnt is not None:
            continue
        # Masks of a finished run stay until the next ones, and scores are learned from scratch.
        module.__class__ = PstLinear
        module.options = options
        weight = module.weight_oi()
        rows, columns = weight.shape
        module.learnt = LearntScores.fresh(rows, columns, options.rank, generator, weight.device)
    return found


def _check_layer(name: str, module: Any) -> None:
    if type(module) is ZeroKeepingLinear:
        raise ValueError(f"{name}: keep_zeros_ fixes which weights stay, and PST learns it. Use one of the two.")
    if type(module) not in (Linear, PstLinear) or type(module.get_base_layer()) not in (nn.Linear, Conv1D):
        raise ValueError(
            f"{name}: the criterion 'pst' masks linear layers, but this is a {type(module).__name__} on a "
            f"{type(module.get_base_layer()).__name__}. Remove it from the LoRA targets, or do not quantize the base."
        )
    weight = module.get_base_layer().weight
    if type(weight) is not nn.Parameter or weight.dtype not in PLAIN_DTYPES or weight.is_meta:
        raise ValueError(f"{name}: the criterion 'pst' needs base weights in 16 or 32 bits. Do not quantize the base.")
    if module.merged or len(module.lora_A) != 1:
        raise ValueError(f"{name}: PST trains one adapter that is not merged; call unmerge_adapter() or remove others.")
    if module.lora_variant:
        raise ValueError(f"{name}: a variant of LoRA cannot be masked. Use plain LoRA (for example use_dora=False).")
