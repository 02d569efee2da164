"""DeepSeek: latent attention (not pruned), dense first layers, then routed experts with shared ones beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.architectures.moe import DENSE_CHANNELS, expert_channels, experts, ffn
from loraprune.architectures.spec import ArchitectureSpec, ConfigKeys, DimensionSpec, Number, StackSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTH = "moe_intermediate_size"

# The shared experts form one FFN of n_shared_experts × moe_intermediate_size channels. The config has one width for
# routed and shared experts, so they are one kind; each shared expert may keep any of its channels.
SHARED_EXPERTS = ffn(
    "expert_channels",
    "mlp.shared_experts",
    Number(name=WIDTH, count="stratum"),
    name="shared_expert_channels",
    strata="shared_experts",
    multiple=8,
)


def _spec(model_type: str, *whole_experts: DimensionSpec) -> ArchitectureSpec:
    # Multi-head latent attention: all heads read one compressed key and value, and only the stock head count divides
    # the rest of the layout, so attention has no dimension here.
    return ArchitectureSpec(
        model_type=model_type,
        decoder="model",
        stacks=(
            StackSpec(
                blocks="model.layers",
                dimensions=(DENSE_CHANNELS, expert_channels(WIDTH), SHARED_EXPERTS, *whole_experts),
            ),
        ),
        config=ConfigKeys(experts="n_routed_experts"),
    )


def deepseek_v2(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of DeepSeek-V2.

    A router that first chooses groups of experts needs groups of equal size, so whole experts are then left out.
    """
    grouped = config.topk_method != "greedy" and (config.n_group or 1) > 1
    return _spec("deepseek_v2", *(() if grouped else (experts("n_routed_experts"),)))


def deepseek_v3(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of DeepSeek-V3 and R1.

    The router takes the two best experts of each group, even if there is only one group.
    """
    grouped = (config.n_group or 1) > 1 or (config.num_experts_per_tok or 1) < 2
    return _spec("deepseek_v3", *(() if grouped else (experts("n_routed_experts", bias=True),)))


DEEPSEEK_BY_CONFIG = {"deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3}
