"""What the contract of architectures needs to know of a family: one small config, and how the model is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models import VOCABULARY, token_ids
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraprune.layers.unwrap import base_model
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure

# In a mixture of experts peft takes these names for those of the experts, which are one tensor today, and leaves the
# layers alone that bear them. As parameters it finds them.
FUSED = ("gate_proj", "up_proj", "down_proj")

Inputs = dict[str, torch.Tensor]


def tokens() -> Inputs:
    """Token ids of three sequences."""
    return {"input_ids": token_ids()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A small model of a family, in one of its variants.

    Attributes:
        name: of the family and the variant.
        config: makes the config. At least two layers; widths that can be halved.
        kinds: what is pruned by default.
        others: kinds that the user may ask for.
        stock: the kinds whose widths the stock config can say.
        auto: class of transformers that makes and loads the model.
        inputs: makes what the model is called with.
        attentions: implementations of attention that the family has.
        generates: whether it writes text with ``generate`` from token ids alone.
    """

    name: str
    config: Callable[[], PretrainedConfig]
    kinds: tuple[str, ...]
    others: tuple[str, ...] = ()
    stock: tuple[str, ...] = ()
    auto: Any = AutoModelForCausalLM
    inputs: Callable[[], Inputs] = tokens
    attentions: tuple[str, ...] = ("eager", "sdpa")
    generates: bool = True

    def model(self, *, attention: str = "eager", seed: int = 0) -> PreTrainedModel:
        """A model with random weights in evaluation mode."""
        model = self.auto.from_config(self.config(), attn_implementation=attention)
        randomize_(model, seed)
        return model.eval()


@torch.no_grad()
def randomize_(model: nn.Module, seed: int) -> None:
    """Give every parameter random values of a size at which each of them is felt; scales of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "Norm" in type(module).__name__ and name == "weight"
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.2 * noise)


def adapted(model: PreTrainedModel, structure: Structure, *, seed: int = 0) -> PeftModel:
    """Put LoRA with random factors, both of them nonzero, on every layer of every group."""
    modules, parameters = set(), set()
    members = [member for dimension in structure for member in dimension.all_members]
    of_experts = any(member.stacked for member in members) or "experts" in structure.kinds
    for member in members:
        layer = model.get_submodule(member.module)
        if of_experts and member.module.rpartition(".")[2] in FUSED and isinstance(layer, nn.Linear):
            parameters.add(f"{member.module}.weight")
        elif isinstance(layer, nn.Linear | Conv1D):
            modules.add(member.module)
        elif getattr(getattr(layer, member.parameter, None), "ndim", 0) == 3:  # stacked experts
            parameters.add(f"{member.module}.{member.parameter}")
    config = LoraConfig(
        r=3,
        lora_alpha=4,
        target_modules=sorted(modules),
        target_parameters=sorted(parameters) or None,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in modules),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
    return peft_model


def structure_of(model: nn.Module, kinds: tuple[str, ...] | None) -> Structure:
    """What can be pruned: the default, or what the user asks for."""
    return describe(base_model(model), kinds)


def logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """What the model computes, without a cache."""
    cache = {"use_cache": False} if hasattr(base_model(model), "generate") and "input_ids" in inputs else {}
    output: torch.Tensor = model(**inputs, **cache).logits
    return output


def base_config(**changes: Any) -> dict[str, Any]:
    """A small vocabulary without special tokens."""
    return {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **changes}
