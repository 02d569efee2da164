"""NF4 and FP4 of bitsandbytes: blocks of 4-bit numbers with one scale each; the scales may be quantized as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch

from loraprune.layers.quantized.layout import Layout, UnsupportedQuantizationError, bounds


def whole_blocks(index: torch.Tensor, size: int) -> torch.Tensor | None:
    """Return the blocks that positions form if they form whole blocks in order; otherwise None."""
    if index.numel() % size:
        return None
    first = index.view(-1, size)[:, 0]
    whole = first[:, None] + torch.arange(size, device=index.device)
    return first // size if bool((first % size == 0).all()) and torch.equal(whole.flatten(), index) else None


CPU_CHUNK = 16
"""Number of weights that bitsandbytes dequantizes together on a CPU, with one scale."""

CPU_ROWS = 32
"""Number of rows that bitsandbytes reorders together on CPUs with AVX512-BF16; it fails if there is a remainder."""


def is_misread(columns: int, block_size: int, device: torch.device) -> bool:
    """Whether bitsandbytes (0.50) uses wrong scales: on a CPU, if rows are whole chunks but not whole blocks."""
    return device.type == "cpu" and columns % block_size != 0 and columns % CPU_CHUNK == 0


class _Product(torch.autograd.Function):
    """``x Wᵀ`` with a weight that is dequantized again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        ctx.read = read
        return inputs @ read().to(inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.read().to(gradient.dtype), None


def _forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Correct forward pass of a layer, which replaces its own."""
    product: Any = _Product
    outputs: torch.Tensor = product.apply(inputs, partial(FourBitLayout().rows, layer, slice(None)))
    return outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)


class FourBitLayout(Layout):
    """``Linear4bit``, whose blocks are stored row by row.

    Rows can be cut exactly if they consist of whole blocks, and columns if whole blocks of them stay. The scales are
    then kept in 32 bits, because their own blocks of 256 do not survive a cut.
    """

    def shape(self, layer: Any) -> tuple[int, int]:
        """Return outputs and inputs; the stored tensor is a long column of bytes."""
        rows, columns = self._state(layer).shape
        return int(rows), int(columns)

    def dtype(self, layer: Any) -> torch.dtype:
        """Return the dtype of the weight before quantization, into which every forward pass dequantizes."""
        dtype: torch.dtype = self._state(layer).dtype
        return dtype

    def rows(self, layer: Any, rows: slice) -> torch.Tensor:
        """Return the weight that a forward pass reads; dequantizes only these rows if rows are whole blocks."""
        from bitsandbytes.functional import dequantize_4bit

        self._check_order(layer)
        state = self._state(layer)
        length, columns = self.shape(layer)
        start, stop = bounds(rows, length)
        if columns % state.blocksize:
            # As one row, which is read correctly on every device.
            flat = self._new_state(state, self._scales(state), (1, length * columns))
            whole = dequantize_4bit(self._bytes(layer).view(-1, 1), flat).view(length, columns)
            return whole[rows].to(torch.float32, copy=True)
        blocks = columns // state.blocksize
        part = self._new_state(state, self._scales(state)[start * blocks : stop * blocks], (stop - start, columns))
        packed = self._bytes(layer)[start * columns // 2 : stop * columns // 2]
        return dequantize_4bit(packed.view(-1, 1), part).to(torch.float32)

    def keep_(self, layer: Any, dim: int, index: torch.Tensor) -> bool:
        """Keep rows or columns exactly if whole blocks stay."""
        self._check_order(layer)
        state = self._state(layer)
        rows, columns = self.shape(layer)
        if columns % state.blocksize:
            return False
        index = index.to(layer.weight.device)
        chosen = index if dim == 0 else whole_blocks(index, state.blocksize)
        if chosen is None:
            return False
        blocks = columns // state.blocksize
        packed = self._bytes(layer).view(rows, blocks, state.blocksize // 2).index_select(dim, chosen)
        scales = self._scales(state).view(rows, blocks).index_select(dim, chosen)
        shape = (packed.shape[0], packed.shape[1] * state.blocksize)
        stored = packed.reshape(-1).view(layer.weight.dtype).view(-1, 1)
        self._store_(layer, stored, self._new_state(state, scales.flatten(), shape))
        return True

    def quantize_(self, layer: Any, weight_OI: torch.Tensor) -> None:
        """Quantize as bitsandbytes does when a model is loaded, with the same type, block size and nesting."""
        from bitsandbytes.functional import quantize_4bit

        state, weight = self._state(layer), layer.weight
        packed, new = quantize_4bit(
            weight_OI.to(weight.device, state.dtype).contiguous(),
            blocksize=state.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=state.quant_type,
            quant_storage=weight.quant_storage,
        )
        self._store_(layer, packed, new)

    def stored_bytes(self, layer: Any) -> int:
        """Return the bytes of the numbers and of what is saved with them: scales, their scales, the code's values."""
        beside = self._state(layer).as_dict(packed=True).values()
        return int(layer.weight.data.nbytes) + sum(int(part.nbytes) for part in beside if hasattr(part, "nbytes"))

    def prepare_(self, layer: Any) -> None:
        """Keep CPU forward passes without gradients from reordering the weight, and make them read it correctly.

        Raises:
            UnsupportedQuantizationError: the weight was already reordered.
        """
        self._check_order(layer)
        layer.support_avx512bf16_for_cpu = False
        self._store_(layer, layer.weight.data, self._state(layer))

    def _check_order(self, layer: Any) -> None:
        if getattr(self._state(layer), "packing_format_for_cpu", False):
            raise UnsupportedQuantizationError(
                "A 4-bit layer was reordered and rounded by a forward pass without gradients on the CPU, so its "
                "gradients are now wrong. Load the model again and call "
                "loraprune.layers.quantized.prepare_(model) before its first forward pass."
            )

    def _state(self, layer: Any) -> Any:
        return layer.weight.quant_state

    def _bytes(self, layer: Any) -> torch.Tensor:
        packed: torch.Tensor = layer.weight.data.reshape(-1).view(torch.uint8)
        return packed

    def _scales(self, state: Any) -> torch.Tensor:
        """One scale per block, float32."""
        from bitsandbytes.functional import dequantize_blockwise

        if not state.nested:
            scales: torch.Tensor = state.absmax.float()
            return scales
        scales = dequantize_blockwise(state.absmax, state.state2)
        return (scales + state.offset).float()

    def _new_state(self, state: Any, scales: torch.Tensor, shape: tuple[int, int]) -> Any:
        return type(state)(
            absmax=scales.contiguous(),
            shape=torch.Size(shape),
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )

    def _store_(self, layer: Any, packed: torch.Tensor, state: Any) -> None:
        layer.__dict__.pop("forward", None)
        if is_misread(state.shape[1], state.blocksize, packed.device):
            layer.forward = MethodType(_forward, layer)
        layer.weight.data = packed
        layer.weight.quant_state = layer.quant_state = state
