"""Models of zoo rows without weights, as the outlining sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.zoo.row import Row
from torch import nn
from transformers import PretrainedConfig


def builder(row: Row) -> Callable[[PretrainedConfig], nn.Module]:
    """Makes models of a row's class on the meta device."""

    def build(config: PretrainedConfig) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = row.auto.from_config(config)
        return model

    return build


class Attention(nn.Module):
    """Projections with heads of their own width, and one fused layer, as a family might have them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.q = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim)
        self.kv = nn.Linear(config.hidden_size, 2 * config.num_key_value_heads * config.head_dim)
        self.norm = nn.LayerNorm(config.num_attention_heads * config.head_dim)
        self.o = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size)
