"""LoRA that keeps the zeros of its base weights: ``W' = (W + s·B·A) ⊙ M`` in the forward pass and in the merge.

``M`` is 1 where ``W`` is not zero. It is not stored, because the weight itself shows it until adapters are merged into
it. The adapter stays an ordinary one, which peft saves and loads as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import Embedding, Linear, LoraLayer, ParamWrapper
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from loraprune.sparsity.masked_product import Factors, keep_zeros, masked_product, packed, unpacked

if TYPE_CHECKING:
    from peft import PeftModel

PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) move a part of the base weight into the factors, which fills its zeros.
HARMLESS_INITS = ("gaussian", "eva", "orthogonal")


_Layer: Any = object  # the mixin is combined with one of peft's layers


class _ZeroKeeping(_Layer):
    """Shared behavior of the two kinds of peft layers that keep zeros."""

    _packed_kept: torch.Tensor | None = None
    """Packed mask of the entries of the base weight that were not zero before the merge; None if nothing is merged.

    A merged weight does not show it: in 16 bits, a sum of weight and update is occasionally zero.
    """

    def _weight(self) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.get_base_layer(), getattr(self, "parameter_name", "weight"))
        return weight

    def _zeros_as_in(self) -> torch.Tensor:
        """Return a tensor that is zero where the base weight is zero, or was before the merge."""
        weight = self._weight()
        if self._packed_kept is None:
            return weight
        return unpacked(self._packed_kept.to(weight.device), weight.shape)

    def resolve_lora_variant(self, **kwargs: Any) -> Any:
        """Reject variants for adapters that are added later."""
        variant = super().resolve_lora_variant(**kwargs)
        if variant is not None:
            raise ValueError(f"{type(variant).__name__} cannot keep zeros. Add a plain LoRA adapter to this model.")
        return None

    def get_delta_weight(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return ``(s·B·A) ⊙ M`` in the shape of the weight, which peft adds to the weight in a merge."""
        weight = self._weight()
        with torch.autocast(weight.device.type, enabled=False):
            delta = super().get_delta_weight(*args, **kwargs)
        return keep_zeros(delta.expand_as(weight), self._zeros_as_in())

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge as peft does, and record which weights were zero for a later unmerge."""
        if self._packed_kept is None:
            self._packed_kept = packed(self._weight().detach() != 0)
        try:
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        finally:
            if not self.merged:
                self._packed_kept = None

    def unmerge(self) -> None:
        """Unmerge as peft does, up to rounding; zeros are restored exactly, and nothing else becomes zero."""
        kept = self._zeros_as_in() != 0
        super().unmerge()
        weight = self._weight().data
        # Rounding can turn a weight far smaller than its update into zero, which would count as pruned from now on.
        weight.masked_fill_(kept & (weight == 0), torch.finfo(weight.dtype).tiny)
        self._packed_kept = None

    def _adapters(self, kwargs: dict[str, Any]) -> list[str]:
        """Return the adapters that the forward pass has to add; none if they are disabled or merged."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names: a batch for several adapters cannot keep the zeros of the base weights. "
                "Use set_adapter, and one batch per adapter."
            )
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.lora_A]


class ZeroKeepingLinear(_ZeroKeeping, Linear):
    """peft's LoRA layer on a linear layer (``nn.Linear`` or ``Conv1D``) that keeps its zeros."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return ``x·W'ᵀ`` plus the bias. In training, dropout applies to the input of the update, as in peft."""
        adapters = self._adapters(kwargs)
        if not adapters:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        weight = self._weight()
        weight_OI = weight.T if self.fan_in_fan_out else weight
        if self._in_one_product(x, adapters):
            factors = [self._factors(name) for name in adapters]
            result = masked_product(x, weight_OI, factors, add_weight=True)
            biases = [] if base.bias is None else [base.bias]
        else:
            result, biases = self.base_layer(x, *args, **kwargs), []
            for name in adapters:
                update = masked_product(self.lora_dropout[name](x), weight_OI, [self._factors(name)])
                result = result + update.to(result.dtype)
        biases += [self.lora_B[n].bias * self.scaling[n] for n in adapters if self.lora_B[n].bias is not None]
        return result + torch.stack([b.to(result.dtype) for b in biases]).sum(0) if biases else result

    def _factors(self, name: str) -> Factors:
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return a.weight, b.weight, float(self.scaling[name])

    def _in_one_product(self, x: torch.Tensor, adapters: list[str]) -> bool:
        """Whether weight and update may be added first, which saves two of five large products of a training step.

        Not in 16 bits, where the sum would lose small updates; not if dropout gives the update a different input; and
        not if the base layer was changed, is trained or has hooks.
        """
        base, weight = self.base_layer, self._weight()
        listened = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        return (
            type(base) in (nn.Linear, Conv1D)
            and not listened
            and "forward" not in vars(base)
            and not weight.requires_grad
            and weight.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled(x.device.type)
            and all(part.weight.dtype == weight.dtype for n in adapters for part in (self.lora_A[n], self.lora_B[n]))
            and not any(isinstance(self.lora_dropout[n], nn.Dropout) and self.training for n in adapters)
        )


class _Added(nn.Module):
    """A parametrization that adds a fixed tensor."""

    def __init__(self, delta: torch.Tensor) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.delta


class ZeroKeepingParamWrapper(_ZeroKeeping, ParamWrapper):
    """peft's LoRA layer on a parameter (mostly stacked experts) that keeps its zeros."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the module with ``W'`` in place of ``W``."""
        adapters = self._adapters(kwargs)
        if not adapters:
            return super().forward(x, *args, **kwargs)
        with self._adapted(reduce(torch.add, [self.get_delta_weight(name) for name in adapters])):
            return self.base_layer(x, *args, **kwargs)

    @contextmanager
    def _adapted(self, delta: torch.Tensor) -> Iterator[None]:
        # peft's own forward pass multiplies the factors without calling `get_delta_weight`.
        base, name = self.get_base_layer(), self.parameter_name
        parametrize.register_parametrization(base, name, _Added(delta), unsafe=True)
        try:
            with parametrize.cached():
                yield
        finally:
            parametrize.remove_parametrizations(base, name, leave_parametrized=False)


_KEEPING: dict[type, type] = {Linear: ZeroKeepingLinear, ParamWrapper: ZeroKeepingParamWrapper}


def keep_zeros_(model: PeftModel) -> int:
    """Make LoRA keep the zeros of the weights that it adapts, during training and in a merge, in place.

    The effective weight becomes ``(W + s·B·A) ⊙ (W != 0)``, for any pattern of zeros. peft's ``merge_adapter``,
    ``merge_and_unload``, ``save_pretrained`` and so on work as before. Call it again after loading a saved adapter on
    the sparse base. Layers without zeros stay plain LoRA layers.

    A training step costs more than with plain LoRA: it computes the product of the factors and the gradient of each
    weight, as in full fine-tuning, although it keeps neither. Merge before generating text.

    Args:
        model: model with LoRA adapters that are not merged.

    Returns:
        Number of adapted weights that hold zeros and are now guarded; a stack of experts counts as one.

    Raises:
        ValueError: the zeros of an adapter or weight cannot be kept: a variant such as DoRA, an initialization that
            rewrites the base, a quantized or sharded weight. In this case nothing is changed.
    """
    configs: dict[str, Any] = model.peft_config
    for adapter, config in configs.items():
        if config.peft_type != "LORA":
            raise ValueError(f"Adapter {adapter!r} is of type {config.peft_type.value}, and only LoRA can keep zeros.")
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init.lower() not in HARMLESS_INITS:
            raise ValueError(
                f"Adapter {adapter!r}: init_lora_weights={init!r} rewrites the base weights, which fills their zeros. "
                "Use True or 'gaussian'."
            )
    guarded = [
        module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, Embedding) and _holds_zeros(name, module)
    ]
    for module in guarded:
        module.__class__ = _KEEPING.get(type(module), type(module))
    return len(guarded)


def _holds_zeros(name: str, module: Any) -> bool:
    """Whether a layer's base weight holds zeros that can be kept; raises if it holds zeros that cannot be kept."""
    if isinstance(module, _ZeroKeeping):
        return True
    weight: Any = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"), None)
    if type(weight) is not nn.Parameter or weight.dtype not in PLAIN_DTYPES or weight.is_meta:
        raise ValueError(
            f"{name}: the base weight is not an ordinary tensor in 16 or 32 bits (quantized, sharded, or not loaded), "
            "so its zeros cannot be kept. Load the sparse checkpoint unquantized."
        )
    if module.merged:
        raise ValueError(f"{name}: an adapter is merged, which hides the zeros. Call unmerge_adapter() first.")
    if bool(torch.count_nonzero(weight) == weight.numel()):
        return False
    if type(module) not in _KEEPING:
        raise ValueError(
            f"{name}: LoRA cannot keep the zeros of a {type(module).__name__}. Remove it from the LoRA targets."
        )
    if module.lora_variant:
        variant = type(next(iter(module.lora_variant.values()))).__name__
        raise ValueError(f"{name}: {variant} cannot keep zeros. Use plain LoRA (for example use_dora=False).")
    if weight.requires_grad:
        raise ValueError(f"{name}: the base weight is being trained, which fills its zeros. Freeze it.")
    return True
