"""Decides whether the zeros of a sparse model stay during tuning, and tells the user."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from loraprune.sparsity.matrices import matrices_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loraprune.recipes.steps.prepared import PreparedTraining
    from loraprune.sparsity.zeros import Zeros

logger = logging.getLogger("loraprune")

_STATE_FILE = "loraprune_zeros.json"


def settle_zeros(prepared: PreparedTraining, model: nn.Module, zeros: Zeros) -> bool:
    """Decide whether the zeros stay, and log it if the model is sparse.

    Args:
        prepared: the run.
        model: loaded model without an adapter.
        zeros: zeros of the model.

    Raises:
        ValueError: the zeros cannot stay, because of sharding or because a layer with zeros is trained itself; or the
            interrupted run decided otherwise.
    """
    keeps = zeros.are_sparsity if prepared.keep_zeros is None else prepared.keep_zeros
    if keeps and prepared.options.sharded:
        raise ValueError(
            f"{prepared.name} is sparse, and --fsdp 2 cannot keep its zeros. Use --no-keep-zeros, or leave --fsdp out."
        )
    if keeps:
        _check_trained_whole(prepared, model)
    if prepared.checkpoint is not None and prepared.recovery:
        _check_same(prepared.checkpoint, keeps)
    if not zeros.are_sparsity:
        return keeps
    if keeps:
        logger.info("%s of the weights of the blocks' linear layers are zero, and they stay zero", _percent(zeros))
    else:
        logger.warning("warning: %s", filling_note(prepared, zeros))
    return keeps


def filling_note(prepared: PreparedTraining, zeros: Zeros) -> str:
    """Explain what fills the zeros of a sparse model if they are not kept."""
    found = f"{_percent(zeros)} of the weights of the blocks' linear layers are zero before this run, and "
    if prepared.recovery:
        return f"{found}merging the LoRA adapter fills them. Leave out --no-keep-zeros (keep_zeros=False) to keep them."
    filling = "the merge of the LoRA adapter fills them"
    if prepared.pruning.repairs:
        filling = "the repair and the merge of the LoRA adapter fill them"
    return f"{found}{filling}. `loraprune recover` tunes a sparse model and keeps its zeros."


def _percent(zeros: Zeros) -> str:
    return f"{100 * zeros.share:.3g} %"


def _check_trained_whole(prepared: PreparedTraining, model: nn.Module) -> None:
    """Check that no layer with zeros in the blocks is trained itself instead of by LoRA.

    Raises:
        ValueError: one is.
    """
    names = list(prepared.lora.modules_to_save or [])
    for block in prepared.structure.blocks if names else ():
        for matrix in matrices_of(model, block):
            # peft matches the endings of the names of a layer and of the modules around it.
            parts = matrix.module_name.split(".")
            around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            whole = [name for name in names if any(path.endswith(name) for path in around)]
            weight = matrix.weight_oi()
            if whole and int(torch.count_nonzero(weight)) < weight.numel():
                raise ValueError(
                    f"modules_to_save={whole[0]!r} trains {matrix.name} itself, which fills its zeros. Leave it out, "
                    "so that LoRA adapts it, or drop the zeros (--no-keep-zeros, keep_zeros=False)."
                )


class RememberKeeping(TrainerCallback):
    """Writes into each checkpoint whether zeros stay, because the merged model depends on it."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write into the checkpoint that the Trainer has written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            (folder / _STATE_FILE).write_text(json.dumps({"keep_zeros": self._keeps}), encoding="utf-8")


def _check_same(checkpoint: Path, keeps: bool) -> None:
    """Check that a resumed run treats the zeros as before.

    Raises:
        ValueError: it does not.
    """
    path = checkpoint / _STATE_FILE
    if not path.is_file():
        return  # a run that prunes; the check of its state finds that
    before = bool(json.loads(path.read_text(encoding="utf-8"))["keep_zeros"])
    if before != keeps:
        words = {True: "kept the zeros of the weights", False: "did not keep the zeros of the weights"}
        raise ValueError(
            f"The interrupted run {words[before]}. Resume it with "
            f"{'--keep-zeros' if before else '--no-keep-zeros'}, or start anew with --overwrite."
        )
