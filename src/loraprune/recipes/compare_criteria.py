"""The recipe of a comparison of criteria: tune a model for some steps, and see which groups each one would remove."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.allocation.agreement import Agreement, agreements
from loraprune.allocation.allocate import check_reachable
from loraprune.allocation.target import BY_SCORES
from loraprune.importance.configs import CRITERIA, GROUP_CRITERIA
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.importance.moving_average import Scores
from loraprune.importance.whole_blocks import built_for
from loraprune.options.field import check_fields, setting
from loraprune.options.flat import options_of
from loraprune.processes.ranks import join
from loraprune.processes.shared_work import together
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.in_parallel import check_parallel
from loraprune.pruning.watching import ListeningCallback
from loraprune.recipes.steps.check import prepare
from loraprune.recipes.steps.prepared import PreparedTraining, RunInputs
from loraprune.structure.dimensions import Structure
from loraprune.structure.widths import LegalWidths, legal_widths
from loraprune.tasks.arguments import given_values
from loraprune.tasks.options import LoraOptions, RunOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from loraprune.metrics.perplexity import Collator

logger = logging.getLogger("loraprune")

OPTIONS = ("lora_form", "taylor_form", "group_reduction", "offload_grads")
"""Options of criteria, given flat."""

LEARNING = ("compresso", "pst")
"""Criteria that train something of their own: beside them, the others would not see the run that they see alone."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Which criteria are compared, and how.

    Attributes:
        criteria: names, at least two; agreement is that of all pairs, those of the first one first.
        ratios: sparsity ratios in (0, 1).
        steps: optimizer steps that the criteria watch.
        allocation: ``uniform`` has every criterion remove equally many groups of every layer; with ``balanced`` and
            ``global`` they also differ in how many.
        dimensions: kinds of dimensions; None takes the family's default.
        keep_layers: layers that keep all of their groups.
        average_decay: λ of the moving averages, in [0, 1).
        average_bias_correction: divide out that the averages start at zero.
        lora_form: of the criterion ``lora``; ``taylor_form`` and ``offload_grads``: of ``taylor``;
            ``group_reduction``: of both and of ``magnitude``. As in :class:`loraprune.PruningConfig`.
    """

    criteria: tuple[str, ...] = ("lora", "fisher", "taylor")
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    steps: int = setting(20, within="[1, 2147483647]", why="the criteria need steps to look at")
    allocation: str = "uniform"
    dimensions: tuple[str, ...] | None = None
    keep_layers: tuple[int | str, ...] = ()
    average_decay: float = 0.9
    average_bias_correction: bool = True
    lora_form: str = "squared"
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False

    def __post_init__(self) -> None:
        for name in ("criteria", "ratios"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = tuple(name for name in CRITERIA if name not in LEARNING)
        for name in self.criteria:
            if name in LEARNING:
                raise ValueError(
                    f"The criterion {name!r} learns masks of its own while the model is tuned, so that others beside "
                    f"it would watch another run. Compare {', '.join(known)}."
                )
            if name not in known:
                raise ValueError(f"There is no criterion {name!r}; choose of {', '.join(known)}.")
            if self.criteria.count(name) > 1:
                raise ValueError(f"The criterion {name!r} is named twice. Name each one once.")
        if len(self.criteria) < 2:
            named = f"only {self.criteria[0]!r}" if self.criteria else "none"
            raise ValueError(f"A comparison needs at least two criteria, and {named} is named.")
        wrong = [ratio for ratio in self.ratios if not 0.0 < ratio < 1.0]
        if wrong or not self.ratios:
            raise ValueError(
                f"ratios are {', '.join(map(str, self.ratios)) or 'missing'}; give at least one, each between 0 and 1."
            )
        check_fields(self)
        if self.allocation not in BY_SCORES:
            raise ValueError(f"allocation is {self.allocation!r}; choose one of {', '.join(BY_SCORES)}.")
        self._check_options()
        self.tuning()

    def _check_options(self) -> None:
        """Make sure that every option means something to one of the criteria, and that all have values that exist."""
        for name in OPTIONS:
            value, owners = getattr(self, name), [kind for kind in GROUP_CRITERIA.values() if name in options_of(kind)]
            default = options_of(owners[0])[name].default
            if value != default and not any(kind.name in self.criteria for kind in owners):
                raise ValueError(
                    f"{name} is {value!r}, an option of {', '.join(kind.name for kind in owners)}, and the criteria "
                    f"compared are {', '.join(self.criteria)}. Leave it out."
                )
            owners[0](**{options_of(owners[0])[name].name: value})  # which checks the value

    def tuning(self) -> PruningConfig:
        """The run that is watched, of which nothing is removed.

        Raises:
            ValueError: a value is wrong.
        """
        return PruningConfig(
            ratio=0.0,
            repair="none",
            criterion="lora" if "lora" in self.criteria else "fisher",
            dimensions=self.dimensions,
            keep_layers=self.keep_layers,
            average_decay=self.average_decay,
        )

    def configs(self) -> dict[str, CriterionConfig]:
        """The criteria with their options, by name."""
        found = {}
        for name in self.criteria:
            kind = GROUP_CRITERIA[name]
            own = {field.name: getattr(self, flat) for flat, field in options_of(kind).items() if flat in OPTIONS}
            found[name] = kind(**own)
        return found


@dataclass(frozen=True, kw_only=True)
class CriteriaComparison:
    """What a comparison gives back.

    Attributes:
        model: name of the checkpoint.
        config: what was asked for.
        rows: agreement of each pair of criteria, by kind of dimension and ratio.
        scores: of every group, by criterion and name of the dimension, in 32 bits on the CPU.
        structure: of the model.
        seed: of the run.
        skipped_steps: steps that were left out since their gradients were not finite.
    """

    model: str
    config: ComparisonConfig
    rows: tuple[Agreement, ...]
    scores: dict[str, Scores] = field(repr=False)
    structure: Structure = field(repr=False)
    seed: int
    skipped_steps: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the scores, as plain values."""
        return {
            "model": self.model,
            "config": asdict(self.config),
            "seed": self.seed,
            "skipped_steps": list(self.skipped_steps),
            "agreement": [asdict(row) for row in self.rows],
        }


def compare_criteria(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    config: ComparisonConfig | None = None,
    *,
    training: Mapping[str, Any] | TrainingArguments | None = None,
    lora: LoraConfig | LoraOptions | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    image_processor: Any = None,
    collator: Collator | None = None,
) -> CriteriaComparison:
    """Compare which groups criteria would remove, from one run that all of them watch; nothing is removed.

    Processes of one run share the sequences of each step; all of them have to call this.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        dataset: in any form that :func:`loraprune.prune` takes.
        config: which criteria and ratios; the default compares ``lora``, ``fisher`` and ``taylor``.
        training: training arguments by name, as for :func:`loraprune.prune`; the number of steps is the config's.
        lora: our options or peft's configuration.
        tokenizer: of the model; None loads it from the checkpoint.
        options: where the data comes from; nothing is measured or written.
        callbacks: further callbacks of the Trainer.
        image_processor: of an image classifier, or the name of a checkpoint that has one; None loads the model's own.
        collator: makes batches of rows in place of the task's own.

    Raises:
        ValueError: something given is wrong; raised before any training.
        TrainingDivergedError: no step had finite gradients.
    """
    config = config or ComparisonConfig()
    training = {} if training is None else given_values(training)
    given = [name for name in ("max_steps", "num_train_epochs") if name in training]
    if given:
        raise ValueError(f"{given[0]} was given; the length of a comparison is the number of its steps (--steps).")
    inputs = RunInputs(
        training={**training, "max_steps": config.steps},
        lora=lora,
        tokenizer=tokenizer,
        options=replace(options or RunOptions(), eval_sequences=0, latency=False, output=None),
        image_processor=image_processor,
        collator=collator,
    )
    join()
    with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch:
        prepared, legal = together(lambda: _prepared(model, dataset, config, inputs, Path(scratch)))
        return _compare(prepared, config, legal, callbacks)


def _prepared(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    config: ComparisonConfig,
    inputs: RunInputs,
    scratch: Path,
) -> tuple[PreparedTraining, LegalWidths]:
    """What is tuned, and the widths that count, all of it checked."""
    prepared = prepare(model, dataset, config.tuning(), inputs, scratch)
    check_parallel(prepared.arguments, config.tuning(), None)
    if prepared.options.sharded:
        raise ValueError("Criteria are compared on models that each process holds whole. Leave FSDP out.")
    for criterion in config.configs().values():
        criterion.check(prepared.structure)
    # Nothing is saved, so that widths need not be ones that a config or a kernel likes.
    legal = legal_widths(prepared.structure, channel_multiple=1, head_counts="any")
    for ratio in config.ratios:
        check_reachable(prepared.structure, ratio, legal, config.allocation)
    return prepared, legal


def _compare(
    prepared: PreparedTraining, config: ComparisonConfig, legal: LegalWidths, callbacks: Sequence[TrainerCallback]
) -> CriteriaComparison:
    """Tune while the criteria listen, then compare what they say."""
    from transformers import PrinterCallback

    seed = prepared.arguments.seed
    configs = config.configs()
    criteria = {name: built_for(criterion, prepared.structure, seed) for name, criterion in configs.items()}
    listening = ListeningCallback(
        criteria, prepared.structure, decay=config.average_decay, bias_correction=config.average_bias_correction
    )
    logger.info("Loading %s", prepared.name)
    model = prepared.load_model()
    trainer = prepared.trainer(model, [listening, *callbacks])
    trainer.remove_callback(PrinterCallback)
    logger.info("Watching %d steps on %d %s", config.steps, len(prepared.train_rows), prepared.task.row_name)
    try:
        trainer.train()
    finally:
        listening.detach()
    rows = agreements(
        prepared.structure,
        listening.scores,
        config.ratios,
        legal,
        config.allocation,
        criteria=configs,
    )
    return CriteriaComparison(
        model=prepared.name,
        config=config,
        rows=tuple(rows),
        scores=listening.scores,
        structure=prepared.structure,
        seed=seed,
        skipped_steps=tuple(listening.skipped_steps),
    )
