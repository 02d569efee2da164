"""PST in training: learned scores, growing masks, and the saved state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration
from loraprune.importance.configs import Pst
from loraprune.processes.ranks import averaged_gradient
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.groups import CutRecord
from loraprune.pruning.run import PruningRun
from loraprune.sparsity.masked_product import packed, unpacked
from loraprune.sparsity.pst_layer import PstLinear, pst_layers_
from loraprune.structure.describe import describe
from loraprune.structure.kinds import protected_layers
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from torch import nn


_PARTS = ("u", "v", "r", "c")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(kw_only=True)
class PstRun(PruningRun):
    """A run in which single weights become zero. Its plan keeps all groups; ``ratio`` is the share of zeros.

    The scores have their own optimizer, Adam without weight decay. The Trainer only clips, decays and saves the
    adapter, as without PST.
    """

    def __post_init__(self) -> None:
        assert isinstance(self.config.criterion, Pst)
        self.options = self.config.criterion
        self._plan = Plan.full(self.structure)
        self._model: nn.Module | None = None
        self.layers: dict[str, PstLinear] = {}
        self._optimizer: torch.optim.Adam | None = None
        self._weights = 0
        self._restored: Mapping[str, torch.Tensor] = {}

    @classmethod
    def of(cls, model: nn.Module, config: PruningConfig) -> PstRun:
        """Make a new run."""
        return cls(config=config, structure=describe(model))

    @property
    def plan(self) -> Plan:
        """All groups; none is removed."""
        return self._plan

    @property
    def refits(self) -> bool:
        """False: PST cuts nothing, so there is nothing to repair."""
        return False

    @property
    def ratio(self) -> float:
        """Current share of zeros in the matrices that LoRA adapts."""
        return self.zeros / self._weights if self._weights else 0.0

    @property
    def zeros(self) -> int:
        """Number of masked weights."""
        masks = [layer.kept for layer in self.layers.values() if layer.kept is not None]
        return sum(mask.numel() - int(mask.sum()) for mask in masks)

    def begin(self, model: nn.Module, total_steps: int, calibration: Calibration | None = None) -> None:
        """Set the schedule and convert the model's layers to PST layers."""
        if self._model not in (None, model):
            raise ValueError("This callback was used for another model. Make a new one for each run.")
        self.set_total_steps(total_steps)
        self._model, config = model, self.config
        target, schedule = config.target, config.schedule
        self.schedule = replace(schedule, every=schedule.every or 1).cut_times(total_steps, target.ratio)
        count = len(self.structure.blocks)
        keep = protected_layers(target.keep_layers, count) if target.keep_layers else frozenset()
        masked = pst_layers_(model, self.structure, self.options, keep, config.seed)
        everything = pst_weights(model, self)
        self._weights, maskable = everything, sum(layer.weight_oi().numel() for layer in masked.values())
        self._stretch = everything / maskable
        if target.ratio * self._stretch > 1.0:
            raise ValueError(
                f"ratio is {target.ratio:g} of all adapted weights, and only a share of {1 / self._stretch:.2g} of "
                "them may be pruned. Lower the ratio, or keep fewer layers."
            )
        self.layers = masked
        self._restore()
        if not self.pending:
            self._release()

    def _learnt(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{part}": tensor
            for name, layer in self.layers.items()
            if layer.learnt is not None
            for part, tensor in zip(_PARTS, layer.learnt.tensors, strict=True)
        }

    def observe(self, usable: bool = True, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make a step of the scores' optimizer, at their own learning rate or else at the adapter's.

        If the step is not usable, the scores stay as they are.

        Raises:
            ValueError: the scores have no learning rate, and there is no optimizer.
        """
        rate = self.options.learning_rate
        if rate is None:
            if optimizer is None:
                raise ValueError(
                    "The scores of pst use the adapter's learning rate: pass the optimizer, observe(optimizer), or "
                    "set Pst(learning_rate=...)."
                )
            rate = optimizer.param_groups[0]["lr"]
        learnt = self._learnt()
        for tensor in learnt.values():
            if tensor.grad is not None:
                tensor.grad = averaged_gradient(tensor.grad)
        gradients = [tensor.grad for tensor in learnt.values() if tensor.grad is not None]
        if usable and gradients and bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            adam = self._adam()
            adam.param_groups[0]["lr"] = rate
            adam.step()
        for tensor in learnt.values():
            tensor.grad = None

    def _adam(self) -> torch.optim.Adam:
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(list(self._learnt().values()), weight_decay=0.0)
        return self._optimizer

    def cut_if_due(self, step: int, optimizer: object | None = None) -> CutRecord | None:
        """Choose new masks if they are due; the last ones are final."""
        due = self.due(step)
        if not due:
            return None
        for layer in self.layers.values():
            layer.mask_(due[-1].ratio * self._stretch)
        record = CutRecord(step, self.ratio, {})
        self.records += [record] * len(due)
        if not self.pending:
            self._release()
        return record

    def _release(self) -> None:
        """Stop learning scores; further steps compute only the gradient of the masked weight."""
        for layer in self.layers.values():
            layer.learnt = None
        self._optimizer = None

    def end(self) -> None:
        """Stop learning scores; the masks stay until the adapter is merged."""
        self._release()

    def summary(self) -> dict[str, Any]:
        """Return the progress of sparsity as plain values."""
        return {
            "pattern": f"{100 * self.config.target.ratio:.4g}%",
            "target": self.config.target.ratio,
            "reached": self.ratio,
            "zeros": self.zeros,
            "weights": self._weights,
            "masks": [{"step": record.step, "ratio": record.ratio} for record in self.records],
        }

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks by layer for a file, eight weights to a byte."""
        return {name: packed(layer.kept).cpu() for name, layer in self.layers.items() if layer.kept is not None}

    def values(self) -> dict[str, Any]:
        """Return an empty mapping: there are no further values to save."""
        return {}

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return scores, their optimizer's state and masks for a file."""
        learnt = self._learnt()
        tensors = {f"mask/{name}": mask for name, mask in self.masks().items()}
        tensors |= {f"learnt/{name}": tensor.detach().cpu() for name, tensor in learnt.items()}
        state = self._optimizer.state if self._optimizer is not None else {}
        for name, tensor in learnt.items():
            tensors |= {f"{moment}/{name}": state[tensor][moment].cpu() for moment in _MOMENTS if tensor in state}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def restored(
        cls, model: nn.Module, config: PruningConfig, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> PstRun:
        """Restore a run; masks and scores are set when it begins."""
        run = cls.of(model, config)
        run.take_over(values)
        run._restored = tensors
        return run

    @torch.no_grad()
    def _restore(self) -> None:
        tensors, self._restored = self._restored, {}
        if not tensors:
            return
        for name, layer in self.layers.items():
            weight_OI = layer.weight_oi()
            if f"mask/{name}" in tensors:
                layer.kept = unpacked(tensors[f"mask/{name}"].to(weight_OI.device), weight_OI.shape)
        for name, tensor in self._learnt().items():
            if f"learnt/{name}" in tensors:
                tensor.copy_(tensors[f"learnt/{name}"])
            if f"step/{name}" in tensors:
                state = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS}
                self._adam().state[tensor] = {
                    key: value if key == "step" else value.to(tensor.device) for key, value in state.items()
                }


def pst_weights(model: nn.Module, run: PruningRun) -> int:
    """Return the number of weights in the blocks' matrices that LoRA adapts, with those of kept layers."""
    from peft.tuners.lora.layer import Embedding, LoraLayer

    from loraprune.layers.unwrap import base_model

    base = base_model(model)
    layers: list[Any] = [
        module
        for block in run.structure.blocks
        for module in base.get_submodule(block).modules()
        if isinstance(module, LoraLayer) and not isinstance(module, Embedding)
    ]
    return sum(int(layer.get_base_layer().weight.numel()) for layer in layers)
