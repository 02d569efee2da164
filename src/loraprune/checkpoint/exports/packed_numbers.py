"""Dequantization of stored weights: tensors in, a tensor out.

Shapes: ``O`` outputs, ``I`` inputs, ``G`` groups of inputs that share a scale, ``P`` numbers in a 32-bit integer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of each of the eight numbers in an AWQ word, from the lowest bits up."""


def unpacked_words(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unpack unsigned numbers of ``bits`` bits from 32-bit words, lowest bits first.

    Args:
        words: packed words, int32.
        bits: bits of a number; divides 32.
        dim: dimension along which they are packed, 0 or 1.

    Returns:
        int32, P times as long along ``dim``.
    """
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    apart = (words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.ndim - dim - 1))) & (2**bits - 1)
    return apart.flatten(dim, dim + 1)


def gptq_weight(
    qweight: Tensor, qzeros: Tensor, scales_GO: Tensor, groups_I: Tensor | None, *, bits: int, zeros_off_by_one: bool
) -> Tensor:
    """Return the weight of a GPTQ layer in 32 bits.

    Args:
        qweight: words, packed along the inputs: (I / P, O).
        qzeros: words, packed along the outputs: (G, O / P).
        scales_GO: scales.
        groups_I: group of each input; None if the groups are consecutive inputs.
        bits: bits of a number.
        zeros_off_by_one: whether zero points are stored minus one, as in the first version of the format.

    Returns:
        (O, I).
    """
    numbers_IO = unpacked_words(qweight, bits, 0)
    zeros_GO = unpacked_words(qzeros, bits, 1) + int(zeros_off_by_one)
    if groups_I is None:
        groups_I = _even_groups(numbers_IO.shape[0], scales_GO.shape[0])
    groups = groups_I.long()
    return (scales_GO.float()[groups] * (numbers_IO - zeros_GO[groups])).T.contiguous()


def awq_weight(qweight: Tensor, qzeros: Tensor, scales_GO: Tensor) -> Tensor:
    """Return the weight of an AWQ layer (4 bits, version GEMM) in 32 bits.

    Args:
        qweight: words, packed along the outputs: (I, O / 8).
        qzeros: words of the zero points, packed in the same way: (G, O / 8).
        scales_GO: scales.

    Returns:
        (O, I).
    """
    numbers_IO, zeros_GO = (_in_order(unpacked_words(words, 4, 1)) for words in (qweight, qzeros))
    groups = _even_groups(numbers_IO.shape[0], scales_GO.shape[0])
    return (scales_GO.float()[groups] * (numbers_IO - zeros_GO[groups])).T.contiguous()


def _in_order(numbers: Tensor) -> Tensor:
    """Reorder the columns of AWQ."""
    words = numbers.unflatten(1, (-1, len(_AWQ_ORDER)))
    found = torch.empty_like(words)
    found[..., torch.tensor(_AWQ_ORDER)] = words
    return found.flatten(1)


def _even_groups(inputs: int, groups: int, size: int | None = None) -> Tensor:
    """Return the group of each input; ``size`` is the size of a group. The last group may be smaller."""
    return torch.arange(inputs) // (size or -(-inputs // groups))


def pack_quantized_weight(
    packed: Tensor, scales_OG: Tensor, zeros: Tensor | None, groups_I: Tensor | None, *, bits: int, inputs: int
) -> Tensor:
    """Return the weight of a layer in the ``pack-quantized`` format of compressed-tensors, in 32 bits.

    Args:
        packed: words, packed along the inputs: (O, I / P), the last word padded.
        scales_OG: scales.
        zeros: zero points, packed along the outputs: (O / P, G); None if all are 0.
        groups_I: group of each input; None if the groups are consecutive inputs.
        bits: bits of a number.
        inputs: number of inputs I.

    Returns:
        (O, I).
    """
    middle = 2 ** (bits - 1)
    numbers_OI = unpacked_words(packed, bits, 1)[:, :inputs] - middle
    groups = _even_groups(inputs, scales_OG.shape[1]) if groups_I is None else groups_I.long()
    if zeros is not None:
        numbers_OI = numbers_OI - (unpacked_words(zeros, bits, 0)[: len(packed)] - middle)[:, groups]
    return numbers_OI * scales_OG.float()[:, groups]


def scaled_weight(
    numbers_OI: Tensor, scales: Tensor, zeros: Tensor | None = None, *, block: Sequence[int] | None = None
) -> Tensor:
    """Return the weight of scaled 8-bit numbers (FP8 or integers), in 32 bits.

    Args:
        numbers_OI: numbers.
        scales: one scale, one per output, or one per block of outputs and inputs; blocks at the edges may be smaller.
        zeros: zero points, in the shape of the scales; None if all are 0.
        block: outputs and inputs of a block, if scales are per block.

    Returns:
        (O, I).
    """
    lengths = numbers_OI.shape
    shape = (1, 1) if scales.numel() == 1 else (len(scales), scales.numel() // len(scales))
    blocked = block is not None and shape == tuple(-(-n // size) for n, size in zip(lengths, block, strict=True))
    sizes = block if block is not None and blocked else (None, None)
    places = [_even_groups(*each) for each in zip(lengths, shape, sizes, strict=True)]
    spread = [part.float().reshape(shape)[places[0]][:, places[1]] for part in (scales, zeros) if part is not None]
    numbers = numbers_OI.float()
    return (numbers - spread[1] if zeros is not None else numbers) * spread[0]
