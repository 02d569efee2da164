"""Short training runs of a tiny model, in a plain Trainer and in trl's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tests.checkpoints import byte_model, sentences, tiny_tokenizer
from tests.models import PROJECTIONS, RECOMPUTATION
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

from loraprune import PruningCallback, PruningConfig

STEPS = 12
BATCH = 4
LENGTH = 16
CUT_STEPS = [3, 5, 6]
"""Where the cuts of ``pruning_config()`` fall in a run of ``STEPS`` steps."""


def pruning_config(**changes: Any) -> PruningConfig:
    """Half goes, in three cuts in the second quarter of the run."""
    return PruningConfig(
        **{"ratio": 0.5, "prune_start": 0.25, "prune_end": 0.5, "cuts": 3, "calibration_sequences": 6, **changes}
    )


def lora_config(**changes: Any) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": list(PROJECTIONS), "task_type": "CAUSAL_LM"}
        | changes
    )


def adapted_model(family: str = "llama", *, dropout: float = 0.0, **changes: Any) -> PeftModel:
    """A tiny model with a fresh adapter, the same at every call."""
    model = byte_model(family, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, lora_config(lora_dropout=dropout))


@functools.cache
def rows(count: int = 48) -> Dataset:
    """Sequences of one length, with labels."""
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(text)["input_ids"][:LENGTH] for text in sentences(count)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def arguments_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        RECOMPUTATION: False,
        **changes,
    }


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind."""

    trainer: Trainer

    @property
    def model(self) -> PeftModel:
        return self.trainer.model

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def make_trainer(
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    model: PeftModel | None = None,
    dataset: Any = None,
    trainer_class: type[Trainer] = Trainer,
    **changes: Any,
) -> Trainer:
    return trainer_class(
        model=adapted_model() if model is None else model,
        args=TrainingArguments(**arguments_of(folder, **changes)),
        train_dataset=rows() if dataset is None else dataset,
        callbacks=list(callbacks),
    )


def train(
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    resume: Path | None = None,
    **changes: Any,
) -> Outcome:
    """Train a PeftModel in a plain Trainer."""
    trainer = make_trainer(folder, callbacks, **changes)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return Outcome(trainer)


def train_with_trl(
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    resume: Path | None = None,
    model: Any = None,
    dataset: Any = None,
    **changes: Any,
) -> Outcome:
    """Train in an SFTTrainer, which makes the adapter itself."""
    set_seed(0)  # trl before 1.15 draws the adapter before it sets the seed of its arguments
    trainer = SFTTrainer(
        model=byte_model() if model is None else model,
        args=SFTConfig(**arguments_of(folder, max_length=LENGTH, **{"bf16": False} | changes)),
        train_dataset=(rows() if dataset is None else dataset).remove_columns("labels"),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config(),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return Outcome(trainer)


def pruned(folder: Path, config: PruningConfig | None = None, **changes: Any) -> tuple[PruningCallback, Outcome]:
    """A whole run with pruning in a plain Trainer."""
    callback = PruningCallback(pruning_config() if config is None else config)
    return callback, train(folder, [callback], **changes)


class StopAfter(TrainerCallback):
    """Saves and stops after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True


class Poison(TrainerCallback):
    """Puts a value into one gradient of some steps, before the callbacks behind it look."""

    def __init__(self, steps: Iterable[int], value: float = float("nan")) -> None:
        self.steps = set(steps)
        self.value = value

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 in self.steps:
            parameter = next(p for p in kwargs["model"].parameters() if p.grad is not None)
            parameter.grad.view(-1)[3] = self.value


def num_hooks(model: torch.nn.Module) -> int:
    """Hooks of every kind on a model."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of a fixed batch, without dropout."""
    batch = torch.arange(40).view(2, 20) * 3 % 250
    return model.eval()(input_ids=batch).logits
