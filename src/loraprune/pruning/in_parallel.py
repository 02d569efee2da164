"""Pruning in a Trainer with several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from loraprune.processes.ranks import from_main, num_processes

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from loraprune.pruning.config import PruningConfig
    from loraprune.pruning.run import PruningRun


def check_parallel(
    args: TrainingArguments, config: PruningConfig, trainer: Trainer | None, *, cuts_later: bool = True
) -> None:
    """Check that a run with several processes can be pruned.

    Raises:
        ValueError: it cannot, or the callback has no Trainer.
    """
    if args.world_size == 1:
        return
    if (args.deepspeed is not None and cuts_later) or args.fsdp:
        raise ValueError(
            "Pruning in several processes needs plain data parallelism (DDP), where each process holds the whole "
            "model. Leave fsdp and deepspeed out. To shard the model, run loraprune prune or recover with --fsdp 2 "
            "(RunOptions(fsdp=2))."
        )
    if args.torch_compile:
        raise ValueError("Pruning in several processes does not support torch_compile. Leave it out.")
    if config.criterion.learns:
        raise ValueError(
            f"The criterion {config.criterion_name!r} learns its gates in one process, and this run has "
            f"{args.world_size}. Start it with one process, or choose another criterion."
        )
    if trainer is None and config.target.ratio > 0.0 and not config.unstructured:
        raise ValueError(
            f"This run has {args.world_size} processes, and the callback needs the Trainer to rebuild DDP after a cut: "
            "call callback.lead_(trainer) before trainer.train()."
        )


def check_same_everywhere(run: PruningRun) -> None:
    """Check that all processes keep the same groups.

    Raises:
        RuntimeError: they do not.
    """
    if num_processes() == 1:
        return
    mine = run.plan.to_json()
    if from_main(lambda: mine) != mine:
        raise RuntimeError("The processes of this run chose different groups. This is a bug: report it.")


def set_up_anew_(trainer: Trainer | None) -> None:
    """Rebuild DDP after a cut, in place, because its buckets have the old shapes of the parameters.

    The first process's weights are sent to all others, as when the model was wrapped.
    """
    wrapped: Any = None if trainer is None else trainer.model_wrapped
    if not isinstance(wrapped, DistributedDataParallel):
        return
    values: Any = vars(wrapped)
    kept = {
        name: values[name]
        for name in ("device_ids", "output_device", "dim", "broadcast_buffers", "find_unused_parameters")
        if name in values
    }
    further = {name: values[name] for name in ("gradient_as_bucket_view", "static_graph") if values.get(name)}
    group, module, training = wrapped.process_group, wrapped.module, wrapped.training
    wrapped.__init__(module, process_group=group, **kept, **further)  # type: ignore[misc]
    wrapped.train(training)
