"""Base class of pruning runs: runs that cut groups, and runs that set single weights to zero."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loraprune.calibration.block_by_block import Calibration
from loraprune.pruning.groups import CutRecord
from loraprune.pruning.phase_timer import PhaseTimer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from loraprune.allocation.schedule import ScheduledCut
    from loraprune.importance.moving_average import Scores
    from loraprune.pruning.config import PruningConfig
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


@dataclass(kw_only=True)
class PruningRun(ABC):
    """State of pruning during a run.

    A run begins once, with the model at :attr:`plan`. Then every optimizer step calls :meth:`observe` after the
    backward passes and :meth:`cut_if_due` after the update. :meth:`end` removes the hooks.

    Attributes:
        config: pruning configuration.
        structure: structure of the model before any pruning.
        records: cuts (or new masks) so far.
        total_steps: number of optimizer steps of the whole run; 0 before it begins.
        phases: time spent by phase.
        schedule: cuts of the whole run, set when it begins.
        micro_batches: number of backward passes in an optimizer step, or None if unknown.
    """

    config: PruningConfig
    structure: Structure
    records: list[CutRecord] = field(default_factory=list)
    total_steps: int = 0
    phases: PhaseTimer = field(default_factory=PhaseTimer)
    schedule: list[ScheduledCut] = field(default_factory=list)
    micro_batches: int | None = None

    @classmethod
    @abstractmethod
    def of(cls, model: nn.Module, config: PruningConfig) -> PruningRun:
        """Make a new run for an unpruned model.

        Raises:
            ValueError: the model cannot be pruned, or not to that ratio.
        """

    @classmethod
    @abstractmethod
    def restored(
        cls, model: nn.Module, config: PruningConfig, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> PruningRun:
        """Restore a run; an unpruned model gets its structure and repaired weights, in place.

        Args:
            model: unpruned model.
            config: the same configuration as before.
            values: output of :meth:`values`, with the cuts, steps and phases of the run.
            tensors: output of :meth:`tensors`.

        Raises:
            ValueError: the state belongs to another model.
        """

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Current groups."""

    @property
    @abstractmethod
    def ratio(self) -> float:
        """Sparsity ratio reached so far."""

    @property
    @abstractmethod
    def refits(self) -> bool:
        """Whether cuts are repaired."""

    @property
    def importance(self) -> Scores:
        """Last score of every group, with removed ones; empty if the run does not cut groups."""
        return {}

    @property
    def averages(self) -> Scores:
        """Averages of the scores of the current groups; empty if there are none."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Current number of base parameters."""
        return self.structure.num_parameters - self.plan.removed_parameters(self.structure)

    @property
    def pending(self) -> list[ScheduledCut]:
        """Cuts still to be made."""
        return self.schedule[len(self.records) :]

    def due(self, step: int) -> list[ScheduledCut]:
        """Return the cuts that are due after an optimizer step."""
        return [cut for cut in self.pending if cut.step <= step]

    @abstractmethod
    def begin(self, model: nn.Module, total_steps: int, calibration: Calibration | None = None) -> None:
        """Set the schedule and start to collect evidence; a resumed model must be at the plan already.

        Raises:
            ValueError: the model or the number of steps has changed, or the adapter does not support pruning.
        """

    def set_total_steps(self, total_steps: int) -> None:
        """Set the number of steps of the run.

        Raises:
            ValueError: the run was started with another number.
        """
        if self.total_steps not in (0, total_steps):
            raise ValueError(
                f"The run was started with {self.total_steps} steps and would now have {total_steps}, which would move "
                "the cuts. Resume with the same data, batch size and number of steps."
            )
        self.total_steps = total_steps

    @abstractmethod
    def observe(self, usable: bool = True, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Collect the evidence of a step, after its backward passes; drop it if the step is not usable."""

    @abstractmethod
    def cut_if_due(self, step: int, optimizer: object | None = None) -> CutRecord | None:
        """Make the cut that is due after an optimizer step; wait if there is no usable score yet."""

    @abstractmethod
    def end(self) -> None:
        """Remove all hooks from the model."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Return the progress of pruning as plain values."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return the plain values of the state, without configuration, cuts, steps and phases."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors of the state, by their names in the file."""

    def take_over(self, values: Mapping[str, Any]) -> None:
        """Take over cuts, steps and phases of an interrupted run."""
        self.records = [CutRecord.from_json(record) for record in values["cuts"]]
        self.total_steps = values["total_steps"]
        self.phases.take_over(values.get("phases", {}))
