"""Outputs of the parts of a block that no longer change, recorded in one run of the block and reused in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply, send_to_device

from loraprune.layers.unwrap import give_back_forward_, own_forward

if TYPE_CHECKING:
    from torch import nn


def finished_part(block: str, module_name: str, unfinished: Iterable[str]) -> str | None:
    """Return the name, inside a block, of the part that a layer belongs to; None if the part will change.

    Args:
        block: name of the block.
        module_name: name of the layer, which will not change.
        unfinished: names of layers that will.
    """
    inside = f"{block}."
    if not module_name.startswith(inside):
        return None
    part, *changing = (name.removeprefix(inside).partition(".")[0] for name in (module_name, *unfinished))
    return None if part in changing else part


@contextmanager
def recorded(
    block: nn.Module,
    parts: Sequence[str],
    outputs: MutableMapping[str, Any],
    most: int,
    home: torch.device | None = None,
) -> Iterator[None]:
    """Store a copy of the output of each part that one run of the block reaches.

    A part that the run calls more than once is not stored, nor is one whose output is large or no tuple of tensors.

    Args:
        block: the block.
        parts: names of modules in the block.
        outputs: output of each part, replaced in place.
        most: largest number of values in an output that is stored. Attention may return its weights as well, which
            fill the memory.
        home: device to keep the copies on; None leaves them where they are.
    """
    calls: Counter[str] = Counter()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            if calls[name] > 1 or not _is_small(output, most):
                outputs.pop(name, None)
                return
            # A copy: some blocks (Falcon's) add to an output in place.
            outputs[name] = recursively_apply(lambda tensor: tensor.detach().to(home, copy=True), output)

        return hook

    with ExitStack() as stack:
        for name in parts:
            outputs.pop(name, None)
            stack.callback(block.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield


def _is_small(output: Any, most: int) -> bool:
    """Whether an output is a tensor or a tuple of tensors, with at most that many values."""
    values = output if isinstance(output, (tuple, list)) else (output,)
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    others = [value for value in values if value is not None and not isinstance(value, torch.Tensor)]
    return not others and sum(tensor.numel() for tensor in tensors) <= most


@contextmanager
def replayed(block: nn.Module, outputs: MutableMapping[str, Any], device: torch.device | None = None) -> Iterator[None]:
    """Return stored outputs in place of the first call of each part, for one run on the same hidden states.

    Args:
        block: the block.
        outputs: output of each part, see :func:`recorded`; removed once they are used.
        device: device that the block runs on, if the outputs are kept elsewhere.
    """

    def stored(name: str, module: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            give_back_forward_(module, own)
            output = outputs.pop(name)
            return output if device is None else send_to_device(output, device)

        return forward

    with ExitStack() as stack:
        for name in outputs:
            module = block.get_submodule(name)
            own = own_forward(module)
            stack.callback(give_back_forward_, module, own)
            module.forward = stored(name, module, own)
        yield
