"""A training step of plain LoRA tuning, of each criterion, with masks and with slices, as figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache

from loraprune.checkpoint.load import DTYPES
from loraprune.checkpoint.source import ModelSource
from loraprune.measure.benchmark.config import TIMED_CRITERIA, BenchConfig
from loraprune.measure.benchmark.memory import allocated_bytes, peak_bytes, state_bytes, weight_bytes
from loraprune.measure.benchmark.random_inputs import InputSize, inputs_in_words, training_inputs, writes_text
from loraprune.measure.benchmark.result import BenchFigure
from loraprune.measure.benchmark.timing import Call, Rounds, TurnTaker, in_turns
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.pruner import gradients_finite
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.surgery.masking import Masks
from loraprune.tasks.lora import lora_config
from loraprune.tasks.options import LoraOptions
from loraprune.tasks.registry import tunable_task
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from loraprune.structure.plan import Plan

PLAIN = "plain LoRA"
READINGS = 3
"""Number of times scores are read, for a criterion that reads them only at a cut."""


@dataclass(frozen=True, kw_only=True)
class TrainingBench:
    """A model whose training steps are measured, before its weights are loaded.

    Attributes:
        source: source of the model.
        config: what to measure.
        task: task of the model.
        structure: prunable dimensions of the model.
        dtype: dtype of its weights; ``device``: device of the training.
        tokens: tokens per sequence.
    """

    source: ModelSource
    config: BenchConfig
    task: Task
    structure: Structure
    dtype: torch.dtype
    device: torch.device
    tokens: int

    @classmethod
    def of(cls, name: str, config: BenchConfig, device: torch.device) -> TrainingBench:
        """Check the configuration before weights are loaded.

        Raises:
            ValueError: the model cannot be pruned, or its context is shorter than the requested sequences.
        """
        source = ModelSource.of(name, trust_remote_code=config.trust_remote_code, revision=config.revision)
        source.check_trainable()
        return cls(
            source=source,
            config=config,
            task=tunable_task(source),
            structure=describe(source.shapes),
            dtype=source.working_dtype(device) if config.dtype is None else DTYPES[config.dtype],
            device=device,
            tokens=config.tokens_for([source.context]),
        )

    @property
    def accelerated(self) -> bool:
        """Whether training runs on an accelerator."""
        return self.device.type == "cuda"

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of autocast, with the default of ``loraprune prune``."""
        default = self.accelerated and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if (default if self.config.bf16 is None else self.config.bf16) else None

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed, with the default of ``loraprune prune``.

        Raises:
            ValueError: it was requested, but the model does not support it.
        """
        able = self.source.recomputes
        if self.config.gradient_checkpointing and not able:
            raise ValueError("This model cannot compute activations again. Leave gradient_checkpointing off.")
        asked = self.config.gradient_checkpointing
        return able and (self.accelerated if asked is None else asked)

    @property
    def size(self) -> InputSize:
        """Tokens of a micro-batch."""
        return InputSize(batch_size=self.config.batch_size, tokens=self.tokens, seed=self.config.seed)

    def tuned(self) -> Any:
        """The model with a fresh adapter, newly loaded."""
        from peft import get_peft_model

        model: Any = self.source.load(self.dtype, self.device, quantization=self.config.quantization)
        if self.config.attn_implementation is not None:
            model.set_attn_implementation(self.config.attn_implementation)
        torch.manual_seed(self.config.seed)
        options = LoraOptions(r=self.config.lora_r)
        tuned = get_peft_model(model, lora_config(options, self.structure, self.source.shapes, self.task))
        if self.recomputes:
            recompute_(tuned)
        return tuned

    def work(self, model: Any) -> Work:
        """Tokens of one step."""
        inner = model.get_base_model()
        return Work(training_inputs(inner, self.size, self.device), self.config.accumulation, self.autocast)

    def run(self, rounds: Rounds) -> tuple[list[BenchFigure], dict[str, str], int]:
        """Return figures, skipped measurements with reasons, and bytes of the weights with the adapter."""
        with torch.random.fork_rng():
            pruned = self.tuned()
            cut = cut_at_random_(pruned, self.config.ratio, head_counts="any")
            masks = (cut.structure, cut.plan)
            del cut  # it refers to the model, which may have to be freed
            slices = {f"slices, {self.config.ratio:.0%}": TrainingStep(pruned, self.work(pruned))}
            if self.config.one_at_a_time:
                del pruned
                sliced = self._measured(slices, rounds)
                slices.clear()
                clear_device_cache(garbage_collection=True)
            dense = self.tuned()
            steps: dict[str, TrainingStep] = {PLAIN: TrainingStep(dense, self.work(dense))}
            left_out = self._add_criteria_(steps, dense)
            steps[f"masks, {self.config.ratio:.0%}"] = TrainingStep(dense, self.work(dense), masks=masks)
            size = weight_bytes(dense)
            if self.config.one_at_a_time:
                return [*self._measured(steps, rounds), *sliced], left_out, size
            return self._measured(steps | slices, rounds), left_out, size

    def _add_criteria_(self, steps: dict[str, TrainingStep], model: Any) -> dict[str, str]:
        """Add a step for each supported criterion. Return the other criteria, with reasons."""
        left_out = {}
        for name in self.config.criteria or TIMED_CRITERIA:
            try:
                criterion = PruningConfig(
                    criterion=name,
                    ratio=self.config.ratio,
                    repair="none",
                    head_counts="any",
                    offload_grads=self.config.offload_grads and name == "taylor",
                )
                step = TrainingStep(model, self.work(model), criterion=criterion)
                with step.turn() as call:
                    call()
            except ValueError as error:
                left_out[name] = str(error)
                continue
            steps[name] = step
        return left_out

    def _measured(self, steps: dict[str, TrainingStep], rounds: Rounds) -> list[BenchFigure]:
        """Time steps in turns, and measure their memory."""
        stage = f"training step, {inputs_in_words(self.source.shapes, self.size)}"
        times = rounds.run(stage, {name: step.contender() for name, step in steps.items()})
        settings: dict[str, Any] = {
            "batch_size": self.config.batch_size,
            "input": inputs_in_words(self.source.shapes, self.size),
            "accumulation": self.config.accumulation,
            "gradient_checkpointing": self.recomputes,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "quantization": self.config.quantization,
            "lora_r": self.config.lora_r,
        }
        items = self.config.batch_size * self.config.accumulation
        return [
            BenchFigure(
                contender=name,
                measure="training step",
                settings=settings,
                times=times[name],
                tokens=items * self.tokens if writes_text(self.source.shapes) else None,
                items=items,
                peak_bytes=step.peak_bytes(),
                cut_seconds=reading_seconds(step) if step.reads_at_cuts else None,
            )
            for name, step in steps.items()
        ]


def reading_seconds(step: TrainingStep) -> float:
    """Median seconds to read scores at a cut, after a step that collected the evidence."""

    @contextmanager
    def turn() -> Iterator[Call]:
        with step.turn() as call:
            call()
            yield step.read_scores

    contender = TurnTaker(turn=turn, device=step.device)
    return in_turns({"only": contender}, repeats=READINGS, warmup=1)["only"].median


# A step of LoRA tuning without a Trainer: forward and backward passes, a criterion's evidence, the update.

FAR = 10**6
"""Number of steps that a criterion is told, large enough that no cut is due during timing."""
LEARNING_RATE = 1e-4
MAX_NORM = 1.0
"""Maximum norm of gradients, the Trainer's default."""


@dataclass(frozen=True)
class Work:
    """Work of a step.

    Attributes:
        batch: arguments of a forward pass that returns a loss.
        accumulation: passes per step.
        autocast: dtype to compute in, or None for that of the weights.
    """

    batch: Mapping[str, Any]
    accumulation: int = 1
    autocast: torch.dtype | None = None


class TrainingStep:
    """Steps of a model with LoRA, optionally with a criterion or with masks. Several can share a model.

    Args:
        model: model with LoRA.
        work: work of a step.
        criterion: criterion that collects evidence, or None.
        masks: structure and plan for masks, or None.
    """

    def __init__(
        self,
        model: Any,
        work: Work,
        *,
        criterion: PruningConfig | None = None,
        masks: tuple[Structure, Plan] | None = None,
    ) -> None:
        self.model = model.train()
        self.work = work
        self.device: torch.device = next(model.parameters()).device
        self._masks = masks
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
        self.run: GroupRun | None = None
        if criterion is not None:
            self.run = GroupRun.of(model, criterion)
            self.run.micro_batches = work.accumulation

    @contextmanager
    def turn(self) -> Iterator[Call]:
        """Attach the criterion or the masks and yield the step. Afterwards, the model is restored."""
        masks = None
        if self.run is not None:
            self.run.begin(self.model, FAR)
        if self._masks is not None:
            masks = Masks(self.model, *self._masks)
        try:
            yield self.step
        finally:
            if self.run is not None:
                self.run.end()
            if masks is not None:
                masks.remove()

    def contender(self) -> TurnTaker:
        """The step as a contender for timing in turns."""
        return TurnTaker(turn=self.turn, device=self.device)

    def step(self) -> None:
        """Run all passes and the update."""
        self.passes()
        self.update()

    def passes(self) -> None:
        """Forward and backward passes."""
        autocast = self.work.autocast
        for _ in range(self.work.accumulation):
            with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
                loss = self.model(**self.work.batch).loss / self.work.accumulation
            loss.backward()

    def update(self) -> None:
        """Collect the evidence, and update the adapter."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        if self.run is not None:  # plain tuning does not check for NaN
            self.run.observe(usable=gradients_finite(self.model))
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def reads_at_cuts(self) -> bool:
        """Whether the criterion's scores are read only at cuts, not in every step."""
        return self.run is not None and not self.run.criterion.every_step

    def read_scores(self) -> None:
        """Read scores from the evidence so far, the start of a cut if :attr:`reads_at_cuts`."""
        assert self.run is not None
        self.run.criterion.scores(self.run.plan)

    def peak_bytes(self) -> int:
        """Peak bytes during a step, including weights and optimizer. Run one step before calling this."""
        held = weight_bytes(self.model) + state_bytes(self.optimizer)
        before = allocated_bytes(self.device)
        with self.turn() as step:
            held += allocated_bytes(self.device) - before  # masks, and the criterion's state
            return peak_bytes(step, self.device, held=held)


def recompute_(model: Any) -> None:
    """Turn on gradient checkpointing for a model with LoRA."""
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def cut_at_random_(model: Any, ratio: float, **settings: Any) -> GroupRun:
    """Cut random groups without a refit. Speed does not depend on which groups are removed.

    Args:
        model: with LoRA or without; modified in place.
        ratio: sparsity ratio.
        settings: settings of :class:`~loraprune.pruning.config.PruningConfig`.

    Returns:
        The run, with its structure and plan.
    """
    config = PruningConfig(ratio=ratio, criterion="random", repair="none", cuts=1, **settings)
    run = GroupRun.of(model, config)
    run.begin(model, 1)
    run.cut_if_due(1)
    run.end()
    return run
