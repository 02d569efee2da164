"""Distillation: recovery follows another model, the teacher, at each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.metrics.distillation_loss import summed_loss
from loraprune.metrics.perplexity import IGNORED
from loraprune.processes.ranks import num_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


@dataclass(kw_only=True)
class Teacher:
    """Teacher of a run.

    Attributes:
        model: the teacher in evaluation mode, with the same vocabulary.
        share: share of the loss that is the divergence from the teacher, in (0, 1]; the rest is the usual
            cross-entropy.
        is_heard: returns whether the loss currently follows the teacher; otherwise it is the usual loss.
    """

    model: PreTrainedModel
    share: float
    is_heard: Callable[[], bool] = lambda: True


def distilling(trainer_class: type[Trainer], teacher: Teacher) -> type[Trainer]:
    """Build a Trainer of causal language models whose loss follows a teacher.

    Args:
        trainer_class: trl's SFTTrainer.
        teacher: the teacher.
    """

    class Distilling(trainer_class):  # type: ignore[valid-type,misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The usual loss while the teacher is inactive, and if the caller asks for outputs."""
            if return_outputs or not model.training or not teacher.is_heard():
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels_BT = inputs["labels"][:, 1:]
            asked = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
            with_router = bool(getattr(self, "aux_loss_enabled", False))
            outputs = model(**asked, **({"output_router_logits": True} if with_router else {}))
            with torch.no_grad():
                wanted_BTV = teacher.model(**asked).logits
            total = summed_loss(outputs.logits[:, :-1], wanted_BTV[:, :-1], labels_BT, teacher.share)
            counted = (labels_BT != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(counted, device=total.device).clamp(min=1)
            if num_items_in_batch is not None and num_processes() > 1 and self.args.average_tokens_across_devices:
                loss = loss * num_processes()  # gradients are averaged over the processes
            if with_router:
                steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
                loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
            if hasattr(self, "_metrics"):  # metrics that trl's own loss, not called here, would log
                seen = asked["attention_mask"].sum().item() if "attention_mask" in asked else labels_BT.numel()
                self._total_train_tokens += seen
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            return loss

    Distilling.__name__ = trainer_class.__name__
    return Distilling
