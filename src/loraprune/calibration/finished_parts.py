"""Outputs of the parts of a block that no longer change, recorded in one run of the block and reused in the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply, send_to_device

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def recorded(
    block: nn.Module, parts: Sequence[str], outputs: MutableMapping[str, Any], home: torch.device
) -> Iterator[None]:
    """Store a copy of the output of each part that one run of the block reaches.

    A part that the run calls more than once is not stored.

    Args:
        block: the block.
        parts: names of modules in the block.
        outputs: output of each part, replaced in place.
        home: device to keep the copies on.
    """
    calls = dict.fromkeys(parts, 0)

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            if calls[name] > 1:
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


@contextmanager
def replayed(block: nn.Module, outputs: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Return stored outputs in place of running the parts, for one run of the block on the same hidden states.

    Args:
        block: the block.
        outputs: output of each part, see :func:`recorded`; the run may modify it.
        device: device that the block runs on.
    """

    def stored(output: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: send_to_device(output, device)

    with ExitStack() as stack:
        for name, output in outputs.items():
            module = block.get_submodule(name)
            own = module.__dict__.get("forward")  # set where accelerate moves the inputs of a module
            module.forward = stored(output)
            stack.callback(_restore, module, own)
        yield


def _restore(module: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own
