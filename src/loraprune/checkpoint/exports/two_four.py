"""2:4 matrices, with at least two zeros in every four consecutive weights of a row: test, pack and unpack them."""

from __future__ import annotations

import torch

GROUP = 4
"""Consecutive weights of a row that form a group."""

_KEPT = 2
"""Weights of a group that may differ from zero."""

_PLACE_BITS = 2
_GROUP_BITS = _KEPT * _PLACE_BITS


def is_two_four(weight: torch.Tensor) -> bool:
    """Whether a matrix (out, in) has at most two nonzero weights in every four of a row."""
    if weight.dim() != 2 or weight.shape[1] % GROUP or not weight.numel():
        return False
    kept = weight.detach().unflatten(1, (-1, GROUP)).ne(0).sum(dim=-1)
    return bool((kept <= _KEPT).all())


def pack(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kept weights of a 2:4 matrix, and their positions.

    If fewer than two of four are nonzero, zeros fill the rest.

    Returns:
        The values, (O, I/2) in the matrix's dtype; and the positions, (O, ⌈I/8⌉) bytes. A byte holds two groups, the
        first in its lower half. A half holds the positions of its two values (0 to 3, ascending), the first in its
        lower bits.
    """
    assert is_two_four(weight_OI)
    groups_OG4 = weight_OI.unflatten(1, (-1, GROUP))
    # Sorted by "is zero", the kept weights come first. The sort is stable, so the first zeros of a group fill the rest.
    first_OG2 = groups_OG4.eq(0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :_KEPT]
    places_OG2 = first_OG2.sort(dim=-1).values
    values_OJ = groups_OG4.gather(-1, places_OG2).flatten(1)
    halves_OG = places_OG2[..., 0] | places_OG2[..., 1] << _PLACE_BITS
    if halves_OG.shape[1] % 2:
        halves_OG = torch.nn.functional.pad(halves_OG, (0, 1))
    bytes_OB = halves_OG[:, ::2] | halves_OG[:, 1::2] << _GROUP_BITS
    return values_OJ.contiguous(), bytes_OB.to(torch.uint8).contiguous()


def unpack(values_OJ: torch.Tensor, bytes_OB: torch.Tensor) -> torch.Tensor:
    """Return the matrix (O, I) that :func:`pack` packed; all its zeros are positive.

    Raises:
        ValueError: the shapes or dtypes of values and positions do not match.
    """
    rows, groups = values_OJ.shape[0], values_OJ.shape[1] // _KEPT
    if values_OJ.shape[1] % _KEPT or bytes_OB.shape != (rows, -(-groups // 2)) or bytes_OB.dtype != torch.uint8:
        raise ValueError(
            f"Packed weights of shape {tuple(values_OJ.shape)} and positions of shape {tuple(bytes_OB.shape)} "
            f"({bytes_OB.dtype}) do not form a 2:4 matrix: the file is damaged. Export the checkpoint again."
        )
    numbers_OB = bytes_OB.long()
    low, high = numbers_OB & (1 << _GROUP_BITS) - 1, numbers_OB >> _GROUP_BITS
    halves_OG = torch.stack((low, high), dim=-1).flatten(1)[:, :groups]
    places_OG2 = torch.stack((halves_OG & GROUP - 1, halves_OG >> _PLACE_BITS), dim=-1)
    groups_OG4 = values_OJ.new_zeros(rows, groups, GROUP)
    return groups_OG4.scatter(-1, places_OG2, values_OJ.unflatten(1, (groups, _KEPT))).flatten(1)
