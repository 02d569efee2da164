"""The callback that makes single weights zero by PST while a Trainer tunes a model with LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.pst import PstRun

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments


class PstCallback(PruningCallback):
    """Makes a share of the weights that LoRA adapts zero, while a ``Trainer`` or ``SFTTrainer`` tunes the model.

    Example::

        callback = PstCallback(PruningConfig(criterion="pst", ratio=0.5))
        trainer = SFTTrainer(model, train_dataset=data, peft_config=LoraConfig(...), callbacks=[callback])
        trainer.train()
        trainer.model.merge_and_unload().save_pretrained("sparse")

    The adapter alone does not say which weights go: merge it into the model that it was trained in.

    Args:
        config: what share, and when; None for half.
    """

    _cuts = False

    def __init__(self, config: PruningConfig | None = None) -> None:
        config = config or PruningConfig(criterion="pst")
        if not config.unstructured:
            raise ValueError(f"The criterion is {config.criterion!r}; PstCallback is for 'pst'. Use PruningCallback.")
        super().__init__(replace(config, refit=False))

    def restore_(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Read the state of an interrupted run, which is put into the model when training begins.

        Call it before the Trainer is built, then ``trainer.train(resume_from_checkpoint=checkpoint)``.

        Raises:
            FileNotFoundError: the folder holds no state of a pruning run.
            ValueError: the run was started with another configuration.
        """
        self.run, self.history, self.skipped_steps = PstRun.restored(model, Path(checkpoint), self.config)
        self._take_over_time()

    def _new_run(self, model: nn.Module) -> PstRun:
        return PstRun.of(model, self.config)

    def _save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(self.run, PstRun)
        self.run.save(folder, self.history, self.skipped_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the scores take their step; leave out a step whose gradients are not finite."""
        assert isinstance(self.run, PstRun)
        self.run.adapter_learning_rate = kwargs["optimizer"].param_groups[0]["lr"]
        super().on_pre_optimizer_step(args, state, control, **kwargs)
