"""Checks that a Trainer resumes from the checkpoint that its model was restored from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import get_last_checkpoint

from loraprune.pruning.resume import STATE_FILE

if TYPE_CHECKING:
    from transformers import Trainer


def check_before_resuming_(trainer: Trainer, state: Callable[[], tuple[bool, Path | None]]) -> None:
    """Make ``trainer.train(resume_from_checkpoint=...)`` refuse a checkpoint that does not fit its model.

    Without this check, the Trainer loads the adapter into layers of other shapes, and lists every tensor of them.

    Args:
        trainer: Trainer whose ``train`` is replaced.
        state: returns whether the model is unpruned, and the checkpoint that it was restored from for this training.
    """
    train = trainer.train

    @wraps(train)
    def checked(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        folder = resume_from_checkpoint
        if folder is True:
            output = str(trainer.args.output_dir)
            folder = get_last_checkpoint(output) if Path(output).is_dir() else None
        if folder:
            _check_restored(Path(folder), *state())
        return train(resume_from_checkpoint, *args, **kwargs)

    trainer.train = checked  # type: ignore[method-assign]


def _check_restored(checkpoint: Path, unpruned: bool, restored: Path | None) -> None:
    """Check that the model of a Trainer has the structure of a checkpoint.

    Raises:
        ValueError: it was not restored, or from another checkpoint.
    """
    if not (checkpoint / STATE_FILE).is_file():
        return
    remedy = f"Call callback.restore_(model, {str(checkpoint)!r}) on the unpruned model before you build the Trainer."
    if unpruned:
        raise ValueError(f"{checkpoint} belongs to a pruning run, and the model was not restored from it. {remedy}")
    if restored is not None and restored.resolve() != checkpoint.resolve():
        raise ValueError(f"The model was restored from {restored}, and training resumes from {checkpoint}. {remedy}")


def warn_if_not_resumed(restored: Path | None, step: int) -> None:
    """Warn of training that starts at its first step with a model that was restored: the adapter is a new one."""
    if restored is not None and step == 0:
        warnings.warn(
            f"The model was restored from {restored}, but training starts anew, without the adapter of that "
            f"checkpoint. To resume, pass trainer.train(resume_from_checkpoint={str(restored)!r}).",
            stacklevel=2,
        )
