"""Estimate of a run before any weight is loaded: its result, its needs, and options with which it fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation.allocate import ratio_for_parameters
from loraprune.checkpoint.exports.overview import runtimes_after
from loraprune.checkpoint.load import DTYPES
from loraprune.checkpoint.shapes import find_shapes
from loraprune.checkpoint.source import ModelSource
from loraprune.importance.configs import Taylor
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.depth import StepSize, step_size
from loraprune.measure.estimation.forward import block_bytes, forward_size
from loraprune.measure.estimation.frozen_base import frozen_base
from loraprune.measure.estimation.gpus import GPUS, Gpu, step_seconds
from loraprune.measure.estimation.oneshot_work import ONESHOT_LENGTH, OneshotWork, oneshot_work
from loraprune.measure.estimation.refit import CalibrationSize
from loraprune.measure.estimation.remedies import LEAST_BYTES, remedies
from loraprune.measure.estimation.result import Estimate, GpuFit, ModelSize, StepMemory
from loraprune.measure.estimation.run_size import RunSize, TrainedModel
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.estimation.simulated_step import StepSettings, simulate
from loraprune.measure.estimation.smaller_cache import widths_of_smaller_cache
from loraprune.measure.estimation.summed_evidence import evidence_bytes
from loraprune.measure.estimation.target import TargetShapes, cut_size, find_target, whole_plan
from loraprune.pruning.config import PruningConfig
from loraprune.structure.matching_widths import ratio_of_most_even
from loraprune.tasks.arguments import DEFAULT_MAX_LENGTH, check_length
from loraprune.tasks.lora import default_rank

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loraprune.pruning.config import PruningConfig
    from loraprune.structure.dimensions import Structure


def estimate(
    model: str | Path | PretrainedConfig,
    config: EstimateConfig | None = None,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Estimate:
    """Estimate the needs and the result of a run of :func:`loraprune.prune` from a model's config alone.

    A training step runs on shapes, with the model's own code, the adapter and the criterion, and without memory. Every
    figure is an estimate. docs/planning.md lists the assumptions and the accuracy.

    Args:
        model: a checkpoint's folder or Hub name, a ``config.json``, the name of a preset, or a config.
        config: configuration of the run; the default halves the prunable parameters.
        trust_remote_code: run code that comes with the checkpoint.
        revision: revision of a Hub checkpoint.

    Raises:
        ValueError: an argument is wrong, or the model cannot be pruned that way.
    """
    if isinstance(model, (str, Path)):
        source = find_shapes(str(model), trust_remote_code=trust_remote_code, revision=revision)
    else:
        name = str(getattr(model, "_name_or_path", "") or "model")
        source = ModelSource(name=name, config=copy.deepcopy(model))
    return Estimator(source, config or EstimateConfig()).estimate()


class Estimator:
    """Estimates for one model and several ratios. Results that do not depend on the ratio are computed once.

    Args:
        source: source of the model.
        settings: settings of the run.

    Raises:
        ValueError: the model cannot be pruned that way.
    """

    def __init__(self, source: ModelSource, settings: EstimateConfig) -> None:
        pruning = settings.pruning
        self._models = ShapeModels.of(source, pruning.target.dimensions, pruning.target.keep_layers)
        self._structure = self._models.structure
        pruning.criterion.check(self._structure, while_training=not pruning.cuts_first)
        self._stored = source.stored_dtype if settings.dtype is None else DTYPES[settings.dtype]
        self._settings = self._settled(settings)
        self._oneshot_length = settings.max_length or min(ONESHOT_LENGTH, self._models.source.context or ONESHOT_LENGTH)
        self._adapted: dict[Any, tuple[Any, Structure]] = {}
        self._steps: dict[Any, StepSize] = {}
        self._blocks: dict[Any, int] = {}

    def _settled(self, settings: EstimateConfig) -> EstimateConfig:
        """Fill in the defaults that a run would choose."""
        models = self._models
        can, recompute = models.source.recomputes, settings.gradient_checkpointing
        if recompute and not can:
            raise ValueError("This model cannot compute activations again. Leave gradient_checkpointing off.")
        length = settings.max_length
        if models.task.has_tokenizer:
            context = models.source.context
            length = length or (min(DEFAULT_MAX_LENGTH, context) if context else DEFAULT_MAX_LENGTH)
            check_length(length, context)
        lora = settings.lora if settings.lora.r else replace(settings.lora, r=default_rank(self._structure.hidden_size))
        return replace(
            settings,
            lora=lora,
            gradient_checkpointing=can and settings.device == "cuda" if recompute is None else recompute,
            max_length=length,
            bf16=settings.autocast,
            pruning=settings.pruning.changed(repair="none") if self._structure.spans_blocks else settings.pruning,
        )

    def estimate(self, ratio: float | None = None) -> Estimate:
        """Return the estimate for a ratio; None takes the one of the settings.

        Raises:
            ValueError: the ratio cannot be reached.
        """
        settings = self._settings
        settings = replace(settings, pruning=self._reaching(settings, ratio))
        target = find_target(self._models, settings.pruning)
        nothing = find_target(self._models, settings.pruning.changed(ratio=0.0))
        step, plain = self._step(settings, self._stored), self._step(settings, self._stored, listening=False)
        after = self._step(settings, self._stored, target, listening=False)
        before = self._size(nothing)
        following = before.forward_flops * settings.batch_size if settings.distill else 0.0  # the teacher's pass
        return Estimate(
            model=self._models.source.name,
            model_type=self._structure.spec.model_type,
            asked=settings.pruning.target.ratio,
            ratio=target.ratio,
            settings=self._as_values(settings),
            before=before,
            after=self._size(target),
            memory=StepMemory.of(
                step, plain, self._cut(settings, target, self._stored), sum(self._teacher(settings, self._stored))
            ),
            memory_after=StepMemory.of(after, after, teacher=sum(self._teacher(settings, self._stored))),
            step_flops=step.flops * settings.gradient_accumulation_steps,
            step_flops_after=(after.flops + following) * settings.gradient_accumulation_steps,
            gpus=tuple(self._fit(gpu, settings, target, after.flops + following) for gpu in GPUS),
            notes=tuple(self._notes(settings)),
            loads_in=self._runtimes(settings.pruning),
        )

    @property
    def settings(self) -> EstimateConfig:
        """Settings of the run, including the defaults that it would choose."""
        return self._settings

    def oneshot_work(self, ratio: float | None = None) -> OneshotWork | None:
        """Return the arithmetic of ``loraprune oneshot`` with the same target; None if no part of it can be shared.

        Raises:
            ValueError: the ratio cannot be reached.
        """
        pruning = self._reaching(self._settings, ratio)
        return oneshot_work(
            self._models.source.shapes,
            self._structure,
            find_target(self._models, pruning).counts,
            sequences=pruning.calibration_sequences,
            tokens=self._oneshot_length,
        )

    def run_size(
        self,
        ratio: float | None = None,
        *,
        processes: int,
        bfloat16: bool = True,
        settings: EstimateConfig | None = None,
    ) -> RunSize:
        """Return the size of the run for one of several processes.

        Args:
            ratio: as for :meth:`estimate`.
            processes: number of processes of the run.
            bfloat16: whether their GPUs support bfloat16.
            settings: settings of another run of the same model; None takes those of the estimator.

        Raises:
            ValueError: the ratio cannot be reached.
        """
        settings = settings or self._settings
        settings = replace(settings, pruning=self._reaching(settings, ratio))
        target = find_target(self._models, settings.pruning)
        dtype, settings = self._trained_in(settings, bfloat16)
        nothing = find_target(self._models, settings.pruning.changed(ratio=0.0))
        kept = isinstance(settings.pruning.criterion, Taylor)  # whole gradients, if there are other processes
        step = self._step(settings, dtype, processes=min(processes, 2) if kept else 1)
        plain = self._step(settings, dtype, listening=False)
        after = self._step(settings, dtype, target, listening=False)
        teacher = sum(self._teacher(settings, dtype))
        following = self._size(nothing).forward_flops * settings.batch_size if settings.distill else 0.0

        def trained(size: StepSize, shapes: TargetShapes | None, further: float, share: float) -> TrainedModel:
            depth = len(self._structure.blocks) if shapes is None else shapes.depth
            adapted = self._adapted[self._made_of(settings, dtype, shapes)]
            return TrainedModel(
                base=frozen_base(*adapted, depth),
                gradients=size.adapter - size.states,
                flops=size.flops + further,
                forward_flops=self._size(shapes or nothing).forward_flops * settings.batch_size + further,
                dequantized=self._dequantized(settings, dtype) * share,
            )

        listens = not settings.pruning.cuts_first and settings.pruning.target.ratio > 0.0
        criterion = settings.pruning.criterion
        return RunSize(
            before=trained(step, None, 0.0, 1.0),
            after=trained(after, target, following, 1 - target.ratio),
            memory=StepMemory.of(step, plain, self._cut(settings, target, dtype, processes), teacher),
            evidence=evidence_bytes(criterion, self._models.source.shapes, self._structure) if listens else 0,
            micro_batches=settings.gradient_accumulation_steps,
            tokens=settings.batch_size * (settings.max_length or 1),
            dtype=str(dtype).removeprefix("torch."),
        )

    def _trained_in(self, settings: EstimateConfig, bfloat16: bool) -> tuple[torch.dtype, EstimateConfig]:
        """Dtype of weights with or without bfloat16, and the settings for it."""
        return (self._stored, settings) if bfloat16 else (torch.float32, replace(settings, bf16=False))

    def _runtimes(self, pruning: PruningConfig) -> tuple[str, ...]:
        """Runtimes that can load the result."""
        plan = whole_plan(self._structure, pruning)
        model, _ = self._models.pruned(len(self._structure.blocks), plan, self._stored)
        return runtimes_after(model, self._structure, plan)

    def _reaching(self, settings: EstimateConfig, ratio: float | None) -> PruningConfig:
        """Return the target of the pruning, from a ratio or from the option used in its place."""
        pruning, stored = settings.pruning, self._stored
        size = settings.target_size
        target = settings.target_params if size is None else int(size) // stored.itemsize
        if ratio is None and target is not None:
            ratio = ratio_for_parameters(self._structure, target)
        if ratio is not None:
            pruning = pruning.changed(ratio=ratio)
        if settings.target_kv_cache is not None:
            alone, wanted = ratio is None, settings.target_kv_cache
            widths = widths_of_smaller_cache(self._models, pruning.target, wanted, stored, alone=alone)
            pruning = pruning.changed(widths=widths)
        if pruning.target.widths is not None:
            legal = pruning.target.legal_widths(self._structure)
            pruning = pruning.changed(ratio=ratio_of_most_even(self._structure, legal))
        return pruning

    def _step(
        self,
        settings: EstimateConfig,
        dtype: torch.dtype,
        target: TargetShapes | None = None,
        *,
        listening: bool = True,
        processes: int = 1,
    ) -> StepSize:
        """Simulate one training step: before the first cut, or of the model after the last one."""
        depth = len(self._structure.blocks) if target is None else target.depth
        made_of = self._made_of(settings, dtype, target)
        run = self._step_settings(settings, listening, processes)
        key = (made_of, depth, repr(run))  # settings that a step does not read must not run it again
        if key not in self._steps:
            try:
                simulated = simulate(*self._adapted[made_of], run)
            except (RuntimeError, TypeError) as error:
                # The model's code reads values, which do not exist here.
                raise ValueError(
                    f"A training step of this {self._structure.spec.model_type} model cannot be run on shapes alone: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            self._steps[key] = step_size(simulated, depth)
        return self._steps[key]

    def _made_of(self, settings: EstimateConfig, dtype: torch.dtype, target: TargetShapes | None) -> Any:
        """Build a model with its adapter once, and return its key."""
        blocks = self._models.few if target is None else target.blocks
        key = (None if target is None else target.ratio, blocks, dtype, settings.quantization, repr(settings.lora))
        if key not in self._adapted:
            plan = None if target is None else target.plan
            self._adapted[key] = self._models.adapted(blocks, plan, dtype, settings)
        return key

    def _step_settings(self, settings: EstimateConfig, listening: bool, processes: int) -> StepSettings:
        rows, tokens = settings.batch_size, settings.max_length or 0
        return StepSettings(
            inputs=self._models.inputs(rows, tokens),
            labels=self._models.labels(rows, tokens),
            fused=self._models.task.name == "causal-lm",
            device=settings.device,
            autocast=settings.autocast,
            checkpointing=bool(settings.gradient_checkpointing),
            micro_batches=settings.gradient_accumulation_steps,
            criterion=settings.pruning.criterion if listening and not settings.pruning.cuts_first else None,
            processes=processes,
        )

    def _size(self, target: TargetShapes) -> ModelSize:
        """Return the model at a target."""
        tokens = self._settings.max_length or 0
        model, structure = self._models.pruned(target.blocks, target.plan, self._stored)
        cached = self._models.task.name == "causal-lm"
        forward = forward_size(model, structure, self._models.inputs(1, tokens), cached=cached, depth=target.depth)
        parameters = self._structure.num_parameters - target.removed
        widths = {
            kind: sorted(target.counts[dimension.name] for dimension in self._structure.of_kind(kind))
            for kind in self._structure.kinds
            if kind != "blocks"
        }
        return ModelSize(
            blocks=target.depth,
            widths={kind: (counts[0], counts[-1]) for kind, counts in widths.items()},
            hidden_size=widths["hidden"][0] if "hidden" in widths else self._structure.hidden_size,
            parameters=parameters,
            file_bytes=parameters * self._stored.itemsize,
            forward_flops=forward.flops,
            cache_bytes=forward.cache / tokens if forward.cache else None,
        )

    def _cut(self, settings: EstimateConfig, target: TargetShapes, dtype: torch.dtype, processes: int = 1) -> float:
        """Peak bytes of a cut; 0 without a refit."""

        def block(data: CalibrationSize) -> int:
            made_of = self._made_of(settings, dtype, None)
            key = (made_of, data)
            if key not in self._blocks:
                inputs = self._models.inputs(data.rows, data.tokens)
                self._blocks[key] = block_bytes(*self._adapted[made_of], inputs, device=settings.device)
            return self._blocks[key]

        step, (teacher, _) = self._step(settings, dtype), self._teacher(settings, dtype)
        size = cut_size(self._models, settings, target, dtype, block, processes)
        return step.weights + step.states + teacher + size if size else 0.0

    def _teacher(self, settings: EstimateConfig, dtype: torch.dtype) -> tuple[float, float]:
        """Bytes of the dense model's weights for distillation, and of the logits in the loss."""
        if not settings.distill:
            return 0.0, 0.0
        tokens = settings.batch_size * (settings.max_length or 0)
        width = 2 if settings.autocast else dtype.itemsize
        # Logits of the teacher and of the model, and their gradient.
        return self._step(settings, dtype).weights, 3.0 * tokens * (self._models.source.vocabulary or 0) * width

    def _needed(self, settings: EstimateConfig, target: TargetShapes, dtype: torch.dtype) -> float:
        step = self._step(settings, dtype)
        return max(step.peak + sum(self._teacher(settings, dtype)), self._cut(settings, target, dtype))

    def _fit(self, gpu: Gpu, settings: EstimateConfig, target: TargetShapes, flops_after: float) -> GpuFit:
        dtype, settings = self._trained_in(settings, gpu.bfloat16)
        needed = self._needed(settings, target, dtype)
        micro, traffic = settings.gradient_accumulation_steps, self._dequantized(settings, dtype)
        return GpuFit(
            gpu=gpu.name,
            usable=gpu.usable,
            needed=needed,
            dtype=str(dtype).removeprefix("torch."),
            seconds=step_seconds(self._step(settings, dtype).flops * micro, gpu, dequantized=traffic),
            seconds_after=step_seconds(flops_after * micro, gpu, dequantized=traffic * (1 - target.ratio)),
            remedy=None if needed <= gpu.usable else self._remedy(gpu, settings, target, dtype),
        )

    def _dequantized(self, settings: EstimateConfig, dtype: torch.dtype) -> float:
        """Bytes of weights that a step dequantizes, in every pass of every micro-batch."""
        if settings.quantization is None:
            return 0.0
        passes = (3 if settings.gradient_checkpointing else 2) * settings.gradient_accumulation_steps
        return float(self._structure.prunable_parameters * dtype.itemsize * passes)

    def _remedy(self, gpu: Gpu, settings: EstimateConfig, target: TargetShapes, dtype: torch.dtype) -> str | None:
        """Options with which the run fits, mildest first; None if none of them is enough."""
        for flags, changed in remedies(settings, can_recompute=self._models.source.recomputes):
            # If the weights alone do not fit, no option helps.
            bound = self._structure.num_parameters * LEAST_BYTES.get(changed.quantization or "", dtype.itemsize)
            if bound <= gpu.usable and self._needed(changed, target, dtype) <= gpu.usable:
                return flags
        return None

    def _as_values(self, settings: EstimateConfig) -> dict[str, Any]:
        values = asdict(settings) | {"pruning": settings.pruning.to_saved()}
        return values | {"dtype": str(self._stored).removeprefix("torch.")}

    def _notes(self, settings: EstimateConfig) -> Iterator[str]:
        pruning = settings.pruning
        if len(self._structure.kinds) > 1 and pruning.target.allocation != "uniform" and pruning.target.ratio > 0.0:
            how = "differ from layer to layer" if pruning.target.allocation == "global" else "are split by importance"
            yield (
                f"With allocation {pruning.target.allocation}, widths {how}, which only the run can tell. Those shown "
                "are those of an even split: as many parameters, another division."
            )
        if pruning.repairs and any(dimension.of_experts for dimension in self._structure):
            yield "The memory of refitting experts is not part of the estimate."
