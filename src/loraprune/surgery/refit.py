"""Cuts with repair: the consumer of the removed groups is refitted by least squares."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.calibration.block_by_block import (
    Calibration,
    CalibrationPass,
    LayerwisePass,
    WholeModelPass,
    token_sequences,
)
from loraprune.calibration.features import ALL_ROWS
from loraprune.calibration.least_squares import Moments, NotPositiveDefiniteError, held_back_columns
from loraprune.calibration.progress import Progress
from loraprune.calibration.residual_stream import NoStreamError, StreamTargets, has_stream
from loraprune.layers.axes import axis_length
from loraprune.layers.unwrap import base_model, eval_mode
from loraprune.processes.sharding import apart, whole_weights
from loraprune.record.saved_steps import SavedStep, SavedSteps
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import compensate_
from loraprune.surgery.effective_weights import set_columns_, weight_before
from loraprune.surgery.masking import masked
from loraprune.surgery.output_error import ConsumerError, Noted, OutputError, output_error, relative, target_error
from loraprune.surgery.refit_experts import refit_experts_
from loraprune.surgery.repair_depth import repair_gaps_
from loraprune.surgery.repairs import Bias, LeastSquares, NoRepair, Refit, Repair, Stream, StreamAndReaders
from loraprune.surgery.restore import restore_readers_, restore_writer_
from loraprune.surgery.slicing import slice_, slice_dimension_

if TYPE_CHECKING:
    from loraprune.structure.dimensions import PrunableDimension, Structure

logger = logging.getLogger("loraprune")

_SCORES = "scores:"

GroupChooser = Callable[["PrunableDimension", int, int, CalibrationPass], Sequence[int]]
"""Chooses the groups that stay. Arguments: the dimension, the current number of groups, the number to keep, and the
pass over the calibration data, positioned at the dimension's block. The result is their positions, ascending."""


@torch.no_grad()
def _refitted(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    damping: float,
    part: Callable[[slice], Moments],
) -> tuple[torch.Tensor, torch.Tensor | None, OutputError]:
    """Return the positions of the columns that stay, their new values, and the error of both.

    The values are None if the cut without a refit is better or, with a warning, if no refit is possible. ``part``
    returns the moments of some of the rows.
    """
    moments = part(ALL_ROWS)
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    before = weight_before(consumer)
    columns = dimension.consumer.positions(torch.as_tensor(positions), num_groups, before.shape[1]).to(before.device)
    after = None
    try:
        after = held_back_columns(before, moments, columns, damping, part)
    except NotPositiveDefiniteError:
        warnings.warn(
            f"{dimension.name}: cut without a refit, because the second moment of its inputs is not positive definite. "
            "Use more calibration sequences or more damping.",
            stacklevel=2,
        )
    if moments.cross is None:
        return columns, after, output_error(before, moments.moment, columns, after)
    return columns, after, target_error(before, moments.moment, columns, after, moments.cross, moments.square)


@dataclass(frozen=True, kw_only=True)
class CutHooks:
    """Functions and settings that accompany a cut.

    Attributes:
        choose: function that chooses the groups to keep, as many as the plan keeps, when a block is reached, from the
            current outputs of the blocks before it. Not called if blocks cannot be cut one by one.
        device: device to compute on, one block at a time, if it is not the model's.
        progress: function that receives the progress of a cut with repair.
        noted: function that receives the error of each consumer that least squares repairs.
        seen: last scores of the groups by dimension, which ``choose`` fills.
        saved: blocks that an interrupted run finished, and where to keep further ones.
        name: of the cut, among them.
    """

    choose: GroupChooser | None = None
    device: torch.device | None = None
    progress: Progress = lambda done, total: None
    noted: Noted = lambda error: None
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    saved: SavedSteps = field(default_factory=SavedSteps)
    name: str = "cut"


def cut_and_repair_(
    model: nn.Module,
    structure: Structure,
    before: Plan,
    after: Plan,
    *,
    calibration: Calibration | None = None,
    repair: Repair | None = None,
    optimizer: object | None = None,
    hooks: CutHooks | None = None,
) -> Plan:
    """Cut a model from one plan to a smaller one, in place, and repair the consumers.

    With calibration data the cut proceeds block by block. Each consumer is repaired on the outputs of the blocks
    before it after their own cut, and only one second moment is in memory at a time.

    Args:
        model: the model or the ``PeftModel`` around it, at plan ``before``.
        structure: structure of the model before any pruning.
        before: current plan of the model.
        after: plan to cut down to.
        calibration: token ids, 1-D tensors, or mappings of the model's inputs; None cuts without a repair. If parts of
            the hidden size are cut, there is no consumer to repair; if whole blocks are cut, only Stream repairs.
        repair: repair of the consumers; None means :class:`~loraprune.surgery.repairs.Refit`. Stream becomes Refit
            if blocks do more than add to a residual stream (:mod:`loraprune.calibration.residual_stream`). Bias
            requires biases on the consumers.
        optimizer: optimizer whose state shrinks with the parameters.
        hooks: functions and settings that accompany the cut.

    Returns:
        The new plan of the model: ``after``, unless the hook ``choose`` chose other groups.
    """
    repair, hooks = repair or Refit(), hooks or CutHooks()
    nothing_to_do = isinstance(repair, NoRepair) and hooks.choose is None
    blocks = structure.of_kind("blocks")
    if calibration and blocks and isinstance(repair, Stream):
        now = describe(model, ["blocks"])
        sequences = token_sequences(now, calibration)
        if sequences is not None and has_stream(model, now, calibration, hooks.device):
            stay = after.positions_in(before).get(blocks[0].name, range(len(now.blocks)))
            repair_gaps_(model, now, stay, sequences, repair.damping, device=hooks.device, progress=hooks.progress)
    if not calibration or structure.spans_blocks or nothing_to_do:
        slice_(model, structure, before, after, optimizer)
        return after
    cut = _Cut(structure, before, after, repair, optimizer, hooks)
    with eval_mode(model):
        sequences = token_sequences(structure, calibration)
        if sequences is None:
            return cut.at_once_(model, WholeModelPass(model, calibration))
        with apart(base_model(model)):
            if isinstance(repair, Stream):
                readers = isinstance(repair, StreamAndReaders)
                cut.targets = StreamTargets(model, structure, sequences, hooks.device, readers=readers)
            return cut.block_by_block_(model, LayerwisePass(model, structure, sequences, hooks.device))


@dataclass
class _Cut:
    """A cut with repair; see :func:`cut_and_repair_`."""

    structure: Structure
    before: Plan
    after: Plan
    repair: Repair
    optimizer: object | None
    hooks: CutHooks
    targets: StreamTargets | None = None
    _behind_a_cut: bool = False
    _errors: list[ConsumerError] = field(default_factory=list)

    @property
    def damping(self) -> float:
        """Ridge of the least squares."""
        return self.repair.damping if isinstance(self.repair, (LeastSquares, Bias)) else Refit().damping

    def block_by_block_(self, model: nn.Module, layerwise: LayerwisePass) -> Plan:
        """Cut and repair each block before the calibration data move on to the next."""
        changed = self.after.positions_in(self.before)
        self.hooks.progress(0, len(self.structure.blocks))
        made: dict[str, Sequence[int]] = {}
        for layer in range(len(self.structure.blocks)):
            block, name = base_model(model).get_submodule(self.structure.blocks[layer]), f"{self.hooks.name}-{layer}"
            with whole_weights(block):
                self._begin_block(layer)
                finished = self.hooks.saved.found(name)
                if finished is not None:
                    made |= self._take_over_(model, block, layer, finished)
                else:
                    positions = self._cut_block_(model, layer, changed, layerwise)
                    made |= positions
                    self._keep(name, block, positions)
                layerwise.advance()
            self.hooks.progress(layer + 1, len(self.structure.blocks))
        return self.before.keep(made)

    def _cut_block_(
        self, model: nn.Module, layer: int, changed: Mapping[str, Sequence[int]], layerwise: LayerwisePass
    ) -> dict[str, Sequence[int]]:
        """Cut and repair a block; positions of the groups that stay, by dimension."""
        made: dict[str, Sequence[int]] = {}
        cut = [dimension for dimension in self.structure.of_layer(layer) if dimension.name in changed]
        for dimension in self._restoring(model, layer, changed, layerwise):
            made[dimension.name] = self._cut_dimension_(model, dimension, changed[dimension.name], layerwise)
            cut.remove(dimension)
            if not isinstance(self.repair, StreamAndReaders):  # which changes layers that lose nothing as well
                layers = {member.module for other in cut for member in other.all_members}
                layerwise.finish(dimension.consumer.module, layers)
        return made

    def _cut_dimension_(
        self, model: nn.Module, dimension: PrunableDimension, positions: Sequence[int], layerwise: LayerwisePass
    ) -> Sequence[int]:
        """Choose groups, repair their consumer and cut; positions of the groups that stay."""
        name, count, part = dimension.consumer.module, self.before.count(dimension.name), None
        with layerwise.unchanged():
            # The repair needs more than the scores, so it comes first: one run of the block serves both.
            if self.targets is not None and not dimension.of_experts:
                part = self.targets.gather(layerwise, name).part
            elif isinstance(self.repair, LeastSquares) and not dimension.of_experts:
                layerwise.features(name, moment=True)
            if self.hooks.choose is not None and dimension.tied is None:
                positions = self.hooks.choose(dimension, count, len(positions), layerwise)
            repaired = self._repair_(model, dimension, positions, count, layerwise, part)
        slice_dimension_(model, dimension, positions, count, self.optimizer)
        if repaired is not None:
            set_columns_(base_model(model).get_submodule(name), None, repaired[1])
        return positions

    def _keep(self, name: str, block: nn.Module, made: Mapping[str, Sequence[int]]) -> None:
        """Keep a block that is finished."""
        if not self.hooks.saved.keeps:
            return
        scores = {
            f"{_SCORES}{dimension}": self.hooks.seen[dimension] for dimension in made if dimension in self.hooks.seen
        }
        facts = {
            "kept": {dimension: [int(position) for position in positions] for dimension, positions in made.items()},
            "errors": [asdict(error) for error in self._errors],
            "behind_a_cut": self._behind_a_cut,
        }
        self.hooks.saved.keep(name, {**block.state_dict(), **scores}, facts)
        self._errors.clear()

    def _take_over_(
        self, model: nn.Module, block: nn.Module, layer: int, finished: SavedStep
    ) -> dict[str, Sequence[int]]:
        """Bring a block to what an interrupted run made of it; positions of the groups that stay, by dimension."""
        made: dict[str, Sequence[int]] = finished.facts["kept"]
        for dimension in self.structure.of_layer(layer):
            if dimension.name in made:
                slice_dimension_(model, dimension, made[dimension.name], self.before.count(dimension.name), None)
        tensors = finished.tensors
        block.load_state_dict({key: value for key, value in tensors.items() if not key.startswith(_SCORES)})
        device = next(block.parameters()).device
        for key, value in tensors.items():
            if key.startswith(_SCORES):
                self.hooks.seen[key.removeprefix(_SCORES)] = value.to(device)
        for error in finished.facts["errors"]:
            self.hooks.noted(ConsumerError(**error))
        self._behind_a_cut = finished.facts["behind_a_cut"]
        return made

    def _restoring(
        self, model: nn.Module, layer: int, changed: Mapping[str, Sequence[int]], layerwise: LayerwisePass
    ) -> Iterator[PrunableDimension]:
        """Yield the dimensions of a block that are cut, in the order of the forward pass.

        With ``stream+readers``, everything before a dimension's consumer is restored before it is yielded.
        """
        dimensions = [dimension for dimension in self.structure.of_layer(layer) if dimension.name in changed]
        targets = self.targets
        if targets is None or not isinstance(self.repair, StreamAndReaders) or layer in self.structure.protected:
            self._behind_a_cut |= bool(dimensions)
            yield from dimensions
            return
        cut_at = {dimension.consumer.module: dimension for dimension in dimensions}
        for writer in targets.writers:
            if self._behind_a_cut:
                restore_readers_(model, targets, layerwise, writer, self.damping)
            if writer in cut_at:
                self._behind_a_cut = True
                yield cut_at.pop(writer)
            elif self._behind_a_cut:
                restore_writer_(model, targets, layerwise, writer, self.damping)
        yield from cut_at.values()

    def _begin_block(self, layer: int) -> None:
        """Run the uncut block on the stream of the uncut model, if that is the target."""
        if self.targets is None:
            return
        try:
            self.targets.begin_block(layer)
        except NoStreamError as error:
            logger.info("%s The refit restores each layer's own output instead.", error)
            self.targets = None

    def at_once_(self, model: nn.Module, whole: WholeModelPass) -> Plan:
        """Mask all blocks, repair their consumers in the order of the forward pass, then cut them all.

        For models whose blocks depend on each other's widths, such as by a shared position bias. A partly cut model
        could not run.
        """
        changed = self.after.positions_in(self.before)
        counts = {dimension.name: self.before.count(dimension.name) for dimension in self.structure}
        now = self.structure.shrunk(counts)
        with masked(model, now, Plan.full(now).keep(changed)):
            for done, dimension in enumerate(now, 1):
                if dimension.name in changed:
                    repaired = self._repair_(model, dimension, changed[dimension.name], dimension.num_groups, whole)
                    if repaired is not None:
                        set_columns_(base_model(model).get_submodule(dimension.consumer.module), *repaired)
                self.hooks.progress(done, len(now.dimensions))
        slice_(model, self.structure, self.before, self.after, self.optimizer)
        return self.after

    def _repair_(
        self,
        model: nn.Module,
        dimension: PrunableDimension,
        positions: Sequence[int],
        num_groups: int,
        calibration: CalibrationPass,
        of_stream: Callable[[slice], Moments] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Repair a consumer that is about to be cut; return positions and new values of its columns, if any.

        ``of_stream`` returns the moments of some of the rows, with the stream of the uncut model as the target.
        """
        if isinstance(self.repair, NoRepair):
            return None
        if dimension.of_experts:
            self._note(dimension, refit_experts_(model, dimension, positions, num_groups, calibration, self.damping))
            return None
        name = dimension.consumer.module
        if of_stream is not None:
            return self._refit(model, dimension, positions, num_groups, of_stream)
        if isinstance(self.repair, Bias):
            length = axis_length(base_model(model).get_submodule(name), "input")
            kept = dimension.consumer.positions(torch.as_tensor(positions), num_groups, length)
            compensate_(model, dimension, kept, calibration)
            return None

        def of_layer(rows: slice) -> Moments:
            found = calibration.features(name, moment=True, rows=rows)
            return Moments(found.moment, found.rows)

        return self._refit(model, dimension, positions, num_groups, of_layer)

    def _refit(
        self,
        model: nn.Module,
        dimension: PrunableDimension,
        positions: Sequence[int],
        num_groups: int,
        part: Callable[[slice], Moments],
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Solve for the columns that stay, and report the error."""
        columns, weight, error = _refitted(model, dimension, positions, num_groups, self.damping, part)
        self._note(dimension, error)
        return None if weight is None else (columns, weight)

    def _note(self, dimension: PrunableDimension, error: OutputError | None) -> None:
        shares = None if error is None else relative(error)
        if shares is not None:
            cut, repaired = shares
            found = ConsumerError(
                dimension=dimension.name, kind=dimension.kind, layer=dimension.layer, cut=cut, repaired=repaired
            )
            self._errors.append(found)
            self.hooks.noted(found)
