"""The processes of a run that a launcher such as torchrun started; a single process is a group of one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

logger = logging.getLogger("loraprune")

T = TypeVar("T")

WAIT = timedelta(hours=6)
"""Time that a process waits for the others, one of which may save or measure a large model meanwhile."""


_alone = ContextVar("alone", default=False)


class OtherProcessError(Exception):
    """Another process of the run failed and reported its error."""


def launched() -> int:
    """Return the number of processes that the launcher started; does not import torch.

    ``WORLD_SIZE`` alone does not count, because it may be left over from another job.
    """
    if _have_met():
        return num_processes()
    if not {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        return 1
    try:
        return max(int(os.environ.get("WORLD_SIZE", "1")), 1)
    except ValueError:
        return 1


def is_main() -> bool:
    """Return whether this is the main process, which writes files and prints."""
    if _have_met():
        import torch.distributed as dist

        return dist.get_rank() == 0
    return launched() == 1 or os.environ["RANK"] == "0"


def _have_met() -> bool:
    if "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def join(*, on_cpu: bool = False) -> None:
    """Join the process group, if there are several processes and this one has not joined yet.

    Args:
        on_cpu: use no GPUs; otherwise each process takes its own.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
    """
    if launched() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        import torch

        logger.info("Waiting for %d processes", launched())
        accelerated = torch.cuda.is_available() and not on_cpu
        if accelerated:
            _take_gpu(torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if accelerated else "gloo", timeout=WAIT)


def _take_gpu(available: int) -> None:
    """Take the GPU of this process.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
    """
    import torch

    own = int(os.environ.get("LOCAL_RANK", "0"))
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), own + 1)
    if here > available:
        raise ValueError(
            f"{here} processes were started on this machine, which has {available} GPUs; each process needs one. "
            f"Start {available}, or set CUDA_VISIBLE_DEVICES to nothing to compute on the CPU."
        )
    torch.cuda.set_device(own)


def leave() -> None:
    """Leave the process group."""
    if launched() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def num_processes() -> int:
    """Return the number of processes that work together now; 1 inside :func:`each_alone`."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone.get() else 1


@contextmanager
def each_alone() -> Iterator[None]:
    """Let every process do all of the work in a ``with`` block, without sharing or sums."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def wait() -> None:
    """Wait until all processes get here."""
    from_main(lambda: None)


def from_main(make: Callable[[], T]) -> T:
    """Call a function in the first process and return its result in all of them.

    Raises:
        OtherProcessError: in the other processes, if the first one raised an error.
    """
    if num_processes() == 1:
        return make()
    import torch.distributed as dist

    box: list[object] = [None, False]
    try:
        if dist.get_rank() == 0:
            box = [make(), True]
    finally:
        dist.broadcast_object_list(box, src=0)
    if not box[1]:
        raise OtherProcessError("Another process of this run failed.")
    return box[0]  # type: ignore[return-value]


@contextmanager
def entered_by_main(context: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Enter a context in the first process only; if that fails, the others fail as well."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context())

        from_main(enter)
        yield


def on_any(flag: bool) -> bool:
    """Return whether a flag is set in any of the processes."""
    if num_processes() == 1:
        return flag
    import torch

    (found,) = summed(torch.tensor([float(flag)])).tolist()
    return bool(found > 0)


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, bitwise the same in each."""
    if num_processes() == 1:
        return values
    import torch.distributed as dist

    total = values.detach().clone()
    if total.device.type == "cpu" and "cpu:" not in str(dist.get_backend_config()):
        # A group that accelerate made only carries tensors of the accelerator.
        carried = total.to("cuda")
        dist.all_reduce(carried)
        return carried.to(total)
    dist.all_reduce(total)
    return total


def total(number: int) -> int:
    """Return the sum of a number over all processes."""
    if num_processes() == 1:
        return number
    import torch

    return int(summed(torch.tensor(number)))


def before_this(counts: torch.Tensor) -> torch.Tensor:
    """Return the sum of an integer tensor over the processes of lower rank."""
    if num_processes() == 1:
        return counts.new_zeros(counts.shape)
    import torch.distributed as dist

    rank = dist.get_rank()
    of_each = counts.new_zeros(num_processes(), *counts.shape)
    of_each[rank] = counts
    return summed(of_each)[:rank].sum(0)


def own_part(length: int) -> slice:
    """Return this process's slice of ``length`` items; slices have nearly equal lengths and are in rank order."""
    if num_processes() == 1:
        return slice(0, length)
    import torch.distributed as dist

    rank, processes = dist.get_rank(), num_processes()
    return slice(length * rank // processes, length * (rank + 1) // processes)


def averaged_gradient(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the common loss: the mean of the processes' gradients.

    A Trainer averages the gradients of the processes. In its own backward pass, each process therefore multiplies its
    part of the loss by the number of processes.
    """
    return gradient if num_processes() == 1 else summed(gradient) / num_processes()


def mean_square(total: torch.Tensor, sequences: int) -> torch.Tensor:
    """Return the mean of squared gradients over the sequences of all processes.

    Args:
        total: sum of the squares over the sequences of this process.
        sequences: number of these sequences.
    """
    processes = num_processes()
    if processes == 1:
        return total / sequences
    import torch

    joined = summed(torch.cat([total.flatten(), total.new_tensor([float(sequences)])]))
    return (joined[:-1] / (joined[-1] * processes**2)).view_as(total)
