"""Tensors inside tuples, lists and mappings, moved to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def placed(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on the device; what is there already is not copied."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: placed(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(placed(item, device) for item in value)
    return value
