"""A Trainer of several processes whose model is cut while it is trained."""

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
    """Make sure that a run of several processes can be pruned.

    Raises:
        ValueError: it cannot, or the callback does not know its Trainer.
    """
    if args.world_size == 1:
        return
    if (args.deepspeed is not None and cuts_later) or args.fsdp:
        raise ValueError(
            "Pruning in several processes goes with plain data parallelism (DDP), where each holds the whole model; "
            "FSDP and DeepSpeed share it out. Leave fsdp and deepspeed out; loraprune prune and recover share it out "
            "with --fsdp 2 (RunOptions(fsdp=2))."
        )
    if args.torch_compile:
        raise ValueError("Pruning in several processes does not go with torch_compile. Leave it out.")
    if config.criterion.learns:
        raise ValueError(
            f"The criterion {config.criterion_name!r} learns its gates in one process, and this run has "
            f"{args.world_size}. Start it with one process, or choose another criterion."
        )
    if trainer is None and config.target.ratio > 0.0 and not config.unstructured:
        raise ValueError(
            f"This run has {args.world_size} processes, and after a cut their common gradients have to be set up anew, "
            "for which the callback needs the Trainer: call callback.lead_(trainer) before trainer.train()."
        )


def check_same_everywhere(run: PruningRun) -> None:
    """Make sure that all processes keep the same groups.

    Raises:
        RuntimeError: they do not.
    """
    if num_processes() == 1:
        return
    mine = run.plan.to_json()
    if from_main(lambda: mine) != mine:
        raise RuntimeError("The processes of this run have chosen different groups. Please report this.")


def set_up_anew_(trainer: Trainer | None) -> None:
    """Let DDP see the parameters that a cut has left, in place: its buckets were made for those before.

    The first process's weights go to all others, as when the model was wrapped.
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
