"""Kernels, losses and live bytes on the meta device, to follow a training step without computing it."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from loraprune.measure.benchmark.memory import LiveBytes
from loraprune.measure.estimation.known_shapes import by_shape

_ATTENTION = "loraprune_estimate"
"""Name of the stand-in in the attention interface of transformers."""

_LOWERED = {
    F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm,
    torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm, torch.addmm, torch.Tensor.addmm, torch.addbmm, F.conv1d,
    F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.scaled_dot_product_attention,
}  # fmt: skip
"""Operations that autocast computes in 16 bits, on every device."""

_RAISED_ON_CUDA = {
    F.layer_norm, torch.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.log_softmax,
    torch.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, torch.pow, torch.Tensor.pow, torch.Tensor.__pow__,
    torch.rsqrt, torch.Tensor.rsqrt, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.cumsum,
    torch.Tensor.cumsum, torch.norm, torch.Tensor.norm, torch.sum, torch.Tensor.sum, torch.prod, F.softplus,
}  # fmt: skip
"""Operations that autocast computes in 32 bits on CUDA. Source: the op reference of torch.amp."""


_GROUPED = {getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)} - {None}
"""Products of rows with the matrix of the expert that each is routed to; the meta device supports only bfloat16."""


class Kernels(TorchFunctionMode):
    """Makes operations on the meta device allocate the memory that they would on a real device.

    Args:
        live: counter of live bytes.
        device: ``cuda`` or ``cpu``.
        autocast: whether matrix products are computed in bfloat16.
    """

    def __init__(self, live: LiveShapes, device: str, autocast: bool) -> None:
        super().__init__()
        self._live = live
        self._device = device
        self._autocast = autocast
        self._raised = _RAISED_ON_CUDA if device == "cuda" else {F.mse_loss}
        # Autocast keeps the 16-bit copies of trained 32-bit weights until it ends.
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __exit__(self, *error: Any) -> None:
        self._copies.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._autocast and func in _LOWERED:
            args = tuple(self._lowered(value) for value in args)
            kwargs = {name: self._lowered(value) for name, value in kwargs.items()}
        elif self._autocast and func in self._raised and kwargs.get("dtype") is None:
            args = tuple(_raised(value) for value in args)
            kwargs = {name: _raised(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            query, key, value, *_ = args
            return fused_attention(self._live, self._device, query, key, value)
        if func in _GROUPED and args[0].device.type == "meta":
            # Every row is multiplied by the matrix of one expert, and all these matrices have the same shape.
            return args[0] @ args[1][0]
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.device.type != "meta":
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, value.to(torch.bfloat16))
        return self._copies[id(value)][1]


def _raised(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    return value


class _Attention(torch.autograd.Function):
    """Saves what fused kernels save: queries, keys, values, the output, and one number per row of the scores."""

    @staticmethod
    def forward(
        ctx: Any, live: LiveShapes, device: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        batch, heads, tokens, _ = query.shape
        output = query.new_empty((batch, tokens, heads, value.shape[-1])).transpose(1, 2)
        sums = query.new_empty((batch, heads, tokens), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.live, ctx.device = live, device
        live.add_flops(_products(query, key, value))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        # Five products instead of two, because the scores are recomputed.
        ctx.live.add_flops(5 * _products(query, key, value) // 2)
        beside = []
        if ctx.device == "cuda":
            # The gradient of the queries is summed in 32 bits; those of shared keys and values are computed per head.
            beside = [query.new_empty(query.shape, dtype=torch.float32), torch.empty_like(sums)]
            if key.shape[1] != query.shape[1]:
                shape = (*query.shape[:2], *key.shape[2:])
                beside += [key.new_empty(shape), key.new_empty((*shape[:-1], value.shape[-1]))]
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del beside
        return None, None, *made


def _products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Operations of the two products of attention, including masked scores, as in torch's counter."""
    batch, heads, tokens, width = query.shape
    return 2 * batch * heads * tokens * key.shape[2] * (width + value.shape[-1])


def fused_attention(
    live: LiveShapes, device: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Output of ``scaled_dot_product_attention`` by shape; heads may share keys and values."""
    attention: Any = _Attention
    output: torch.Tensor = attention.apply(live, device, query, key, value)
    return output


def attention_function(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Function for transformers' attention interface, which creates no mask for a function without a mask function."""
    output = F.scaled_dot_product_attention(query, key, value)
    return output.transpose(1, 2).contiguous(), None


def use_fused_attention_(model: Any) -> Callable[[], None]:
    """Make a model on the meta device use the stand-in for attention.

    Models that call torch's function directly, such as Falcon, request it by its name; :class:`Kernels` replaces it.

    Returns:
        A function that restores everything.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, attention_function)
    changed = []
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        if not _calls_torch(model) and getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = _ATTENTION
            changed.append(config)

    def back() -> None:
        for config in changed:
            config._attn_implementation = "sdpa"

    return back


def _calls_torch(model: Any) -> bool:
    """Whether the source file of a model's class does not use transformers' attention interface."""
    return not hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


# Bytes and arithmetic of tensors that have only a shape: a watched training step on the meta device.


class LiveShapes(LiveBytes):
    """Counts the bytes of live tensors created while it is active, and the operations that compute them.

    Tensors on the meta device take no memory, but their storages have the same sizes and lifetimes as on a real device.
    Temporary allocations inside a kernel are not seen.

    Args:
        held: tensors that exist throughout: weights, the optimizer's states.

    Attributes:
        segment: current segment.
        starts: live bytes at the first start of each segment.
        peaks: peak of live bytes in each segment.
        flops: floating point operations of each segment; a multiply-add counts as two.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.forget()
        for tensor in held:
            self.count(tensor)

    def begin(self, segment: str) -> None:
        """Start a segment. It lasts until the next one starts and may be resumed."""
        self.segment = segment
        self.starts.setdefault(segment, self.now)
        self.peaks[segment] = max(self.peaks.get(segment, 0), self.now)

    def forget(self) -> None:
        """Forget all segments; live bytes stay counted."""
        self.starts: dict[str, int] = {}
        self.peaks: dict[str, int] = {}
        self.flops: dict[str, int] = defaultdict(int)
        self.segment = ""

    def add_flops(self, count: int) -> None:
        """Add the arithmetic of a kernel that is simulated."""
        self.flops[self.segment] += count

    def count(self, value: object) -> None:
        """Count a tensor that was created, if it is new."""
        super().count(value)
        if self.segment and self.now > self.peaks[self.segment]:
            self.peaks[self.segment] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = by_shape(func, args, kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops[self.segment] += formula(*args, **(kwargs or {}), out_val=result)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            self.count(value)
        return result


# The loss of a language model on the meta device: trl's head, which never computes all logits at the same time.

TILE_TOKENS = 4096
TILE_WORDS = 32768
"""Number of logits that trl (1.10) computes at a time."""

ROW_STATISTICS = 7
"""32-bit numbers that it keeps per token while it iterates over the vocabulary."""


TORCH_TILES = (3.0, 7.25)
"""32-bit tiles that torch operations create at the same time without Triton: forward and backward."""


class _FusedLoss(torch.autograd.Function):
    """Memory and arithmetic of trl's ``ChunkedLogProbFunction``."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, triton: bool) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype, ctx.triton = dtype, triton
        statistics = hidden.new_empty((ROW_STATISTICS, len(hidden)), dtype=torch.float32)
        _tiles(hidden, weight, dtype, 0.0 if triton else TORCH_TILES[0])
        del statistics
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        hidden, weight = ctx.saved_tensors
        summed = hidden.new_empty(hidden.shape, dtype=torch.float32)
        _tiles(hidden, weight, ctx.dtype, 0.0 if ctx.triton else TORCH_TILES[1], summed)
        return summed.to(hidden.dtype), None, None, None


def _tiles(
    hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, beside: float, gradient: torch.Tensor | None = None
) -> None:
    """Compute every logit once, in one buffer. A head in another dtype is converted tile by tile.

    Args:
        hidden: rows of hidden states.
        weight: weight of the head.
        dtype: dtype to compute in.
        beside: number of temporary 32-bit tiles.
        gradient: gradient of the hidden states, if it is also summed from the tiles.
    """
    buffer = hidden.new_empty((min(len(hidden), TILE_TOKENS), TILE_WORDS), dtype=dtype)
    for start in range(0, len(hidden), TILE_TOKENS):
        rows = hidden[start : start + TILE_TOKENS].to(dtype)
        for first in range(0, len(weight), TILE_WORDS):
            words = weight[first : first + TILE_WORDS].to(dtype)
            tile = buffer[: len(rows), : len(words)]
            torch.mm(rows, words.T, out=tile)
            work = hidden.new_empty(int(beside * tile.numel()), dtype=torch.float32)
            del work
            if gradient is not None:
                torch.mm(tile, words)


def fused_loss(hidden_BTH: torch.Tensor, head: torch.nn.Linear, device: str, *, autocast: bool) -> torch.Tensor:
    """Return the mean loss over all tokens except the first of each sequence, by shape.

    Args:
        hidden_BTH: normalized output of the last block.
        head: head of the language model.
        device: simulated device: on ``cuda``, Triton kernels use one tile; on ``cpu``, torch operations create several
            of its size.
        autocast: whether products are computed in bfloat16.
    """
    hidden = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])
    dtype = torch.bfloat16 if autocast else hidden.dtype
    fused: Any = _FusedLoss
    losses: torch.Tensor = fused.apply(hidden, head.weight, dtype, device == "cuda")
    return losses.mean()
