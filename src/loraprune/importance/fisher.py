"""Gate-Fisher: the mean over sequences of the squared gradient of a gate on each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.importance.evidence.gates import GateProbes
from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


class FisherCriterion:
    """The default criterion: exact gate gradients, one sequence at a time, at the cost of one product per consumer.

    It reads neither the base weights nor their gradients nor those of LoRA, so the base may be quantized.
    """

    comparable = True
    every_step = True

    def __init__(self) -> None:
        self._probes: GateProbes | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Put gates on the consumers."""
        self._probes = GateProbes(model, structure)

    def scores(self, plan: Plan) -> Scores | None:
        """Return mean squares over the sequences since the last call."""
        if self._probes is None:
            raise RuntimeError("The criterion is not attached to a model.")
        return self._probes.take() or None

    def detach(self) -> None:
        """Remove the gates."""
        if self._probes is not None:
            self._probes.remove()
            self._probes = None
