"""Operations on the meta device, each run once for equal shapes: torch runs most of them in Python, which is slow."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

_META = torch.device("meta")

_KNOWN: dict[Hashable, list[tuple[Any, ...]] | None] = {}
"""Sizes, strides and dtypes of what an operation creates; None if it has to run each time."""


def by_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation. One that creates tensors from shapes alone runs once for equal arguments.

    Args:
        func: operation, below autograd.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    key = (func, torch.get_default_dtype(), _shapes(args), _shapes(tuple(kwargs.items()))) if _creates(func) else None
    known = _KNOWN.get(key)
    if known is not None:
        made = tuple(torch.empty_strided(size, stride, dtype=dtype, device=_META) for size, stride, dtype in known)
        return made if len(func._schema.returns) > 1 else made[0]
    result = func(*args, **kwargs)
    if key is not None and key not in _KNOWN:
        _KNOWN[key] = _created(result, (*args, *kwargs.values()))
    return result


@cache
def _creates(func: Any) -> bool:
    """Whether an operation neither changes its arguments nor returns views of them, by its schema."""
    tensors = all(str(value.type) == "Tensor" for value in func._schema.returns)  # lists have any length
    return tensors and all(argument.alias_info is None for argument in func._schema.arguments)


def _shapes(value: Any) -> Hashable:
    """What the result's shape depends on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    return type(value), value  # 2 and 2.0 are equal, but their products have different dtypes


def _created(result: Any, given: Any) -> list[tuple[Any, ...]] | None:
    """Describe new tensors that fill their storages; None if an operation has other results, or reads values."""
    tensors = list(_tensors(given))
    used = {tensor.untyped_storage()._cdata for tensor in tensors}
    made = result if isinstance(result, tuple) else (result,)
    for tensor in made:
        if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in used:
            return None
        alone = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
        if tensor.untyped_storage().nbytes() != alone.untyped_storage().nbytes():
            return None
        used.add(tensor.untyped_storage()._cdata)
    if not all(tensor.is_meta for tensor in (*made, *tensors)):
        return None
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in made]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
