"""What a pruning run is: the protocol of runs that cut groups and of runs in which single weights become zero."""

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
    """Everything that pruning knows during a run.

    A run begins once, with the model at :attr:`plan`. Then every optimizer step calls :meth:`observe` after the
    backward passes and :meth:`cut_if_due` after the update. :meth:`end` leaves the model without hooks.

    Attributes:
        config: what was asked for.
        structure: of the model before any pruning.
        records: cuts (or new masks) that were made.
        total_steps: optimizer steps of the whole run; 0 before it begins.
        phases: what the time was spent on.
        schedule: cuts of the whole run, set when it begins.
        micro_batches: backward passes in an optimizer step, where that is known.
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
        """A run that has not begun, for a model that is not pruned yet.

        Raises:
            ValueError: the model cannot be pruned, or not by that ratio.
        """

    @classmethod
    @abstractmethod
    def restored(
        cls, model: nn.Module, config: PruningConfig, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> PruningRun:
        """The run to go on with; an unpruned model is brought to its structure and repaired weights, in place.

        Args:
            model: unpruned.
            config: the same as before.
            values: that :meth:`values` gave, and the cuts, steps and phases of the run.
            tensors: that :meth:`tensors` gave.

        Raises:
            ValueError: the state is of another model.
        """

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Groups that are kept now."""

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
        """Last score of every group, also of those that are gone; empty where no groups go."""
        return {}

    @property
    def averages(self) -> Scores:
        """Averages of the scores of the groups that are kept; empty where there are none."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Base parameters of the model as it is now."""
        return self.structure.num_parameters - self.plan.removed_parameters(self.structure)

    @property
    def pending(self) -> list[ScheduledCut]:
        """Cuts that are still to be made."""
        return self.schedule[len(self.records) :]

    def due(self, step: int) -> list[ScheduledCut]:
        """Cuts that should have been made after an optimizer step."""
        return [cut for cut in self.pending if cut.step <= step]

    @abstractmethod
    def begin(self, model: nn.Module, total_steps: int, calibration: Calibration | None = None) -> None:
        """Set the schedule and start to gather evidence; a model that is resumed must be at the plan already.

        Raises:
            ValueError: the model or the number of steps is another one, or the adapter cannot be pruned with.
        """

    def set_total_steps(self, total_steps: int) -> None:
        """Note the length of the run.

        Raises:
            ValueError: the run was started with another one.
        """
        if self.total_steps not in (0, total_steps):
            raise ValueError(
                f"The run was started with {self.total_steps} steps and would now have {total_steps}, so that the "
                "cuts would fall elsewhere. Resume with the same data, batch size and number of steps."
            )
        self.total_steps = total_steps

    @abstractmethod
    def observe(self, usable: bool = True, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take in the evidence of a step, after its backward passes; thrown away where the step is not usable."""

    @abstractmethod
    def cut_if_due(self, step: int, optimizer: object | None = None) -> CutRecord | None:
        """Make the cut that is due after an optimizer step; waits where there is no usable score yet."""

    @abstractmethod
    def end(self) -> None:
        """Leave the model without hooks."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Where pruning stands, as plain values."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """What of the state is plain values, beside configuration, cuts, steps and phases."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of the state, by the names that they have in its file."""

    def take_over(self, values: Mapping[str, Any]) -> None:
        """Go on with cuts, steps and phases of an interrupted run."""
        self.records = [CutRecord.from_json(record) for record in values["cuts"]]
        self.total_steps = values["total_steps"]
        self.phases.take_over(values.get("phases", {}))
