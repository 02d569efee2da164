"""Recipe for comparing criteria: tune a model for some steps and see which groups each criterion would remove."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.allocation.agreement import Agreement, agreements
from loraprune.allocation.allocate import check_reachable
from loraprune.compat.renamed import renamed_keywords
from loraprune.importance.moving_average import Scores
from loraprune.importance.whole_blocks import built_for
from loraprune.processes.ranks import join
from loraprune.processes.shared_work import together
from loraprune.pruning.in_parallel import check_parallel
from loraprune.pruning.watching import ListeningCallback
from loraprune.recipes.comparison_config import ComparisonConfig
from loraprune.recipes.steps.check import prepare
from loraprune.recipes.steps.prepared import PreparedTraining, RunInputs
from loraprune.record.numbers import counted
from loraprune.structure.dimensions import Structure
from loraprune.structure.widths import LegalWidths, legal_widths
from loraprune.tasks.arguments import given_values
from loraprune.tasks.options import LoraOptions, RunOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from loraprune.data.named import Data
    from loraprune.metrics.perplexity import Collator

logger = logging.getLogger("loraprune")


@dataclass(frozen=True, kw_only=True)
class CriteriaComparison:
    """Result of a comparison of criteria.

    Attributes:
        model: name of the checkpoint.
        config: configuration of the comparison.
        rows: agreement of each pair of criteria, by kind of dimension and ratio.
        scores: scores of every group, by criterion and name of the dimension, in 32 bits on the CPU.
        structure: structure of the model.
        seed: seed of the run.
        skipped_steps: steps skipped because their gradients were not finite.
    """

    model: str
    config: ComparisonConfig
    rows: tuple[Agreement, ...]
    scores: dict[str, Scores] = field(repr=False)
    structure: Structure = field(repr=False)
    seed: int
    skipped_steps: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything but the scores, as plain values."""
        return {
            "model": self.model,
            "config": asdict(self.config),
            "seed": self.seed,
            "skipped_steps": list(self.skipped_steps),
            "agreement": [asdict(row) for row in self.rows],
        }


@renamed_keywords(dataset="data")
def compare_criteria(
    model: str | Path | PreTrainedModel,
    data: Data,
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
    """Compare the groups that criteria would remove in one training run; nothing is removed.

    The processes of a run share the sequences of each step; the call is collective.

    Args:
        model: a checkpoint's folder or Hub name, or a loaded model, modified in place.
        data: data in any form that :func:`loraprune.prune` takes.
        config: criteria and ratios; the default compares ``lora``, ``fisher`` and ``taylor``.
        training: training arguments by name, as for :func:`loraprune.prune`; the config sets the number of steps.
        lora: our options or peft's configuration.
        tokenizer: tokenizer of the model; None loads it from the checkpoint.
        options: options of the data; nothing is measured or written.
        callbacks: further callbacks of the Trainer.
        image_processor: image processor of a classifier, or name of a checkpoint with one; None loads the model's.
        collator: function that turns rows into batches, instead of the task's own.

    Raises:
        ValueError: an argument is wrong; raised before any training.
        TrainingDivergedError: no step had finite gradients.
    """
    config = config or ComparisonConfig()
    training = {} if training is None else given_values(training)
    given = [name for name in ("max_steps", "num_train_epochs") if name in training]
    if given:
        raise ValueError(f"{given[0]} is not an option of a comparison. Set the number of its steps (--steps).")
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
        prepared, legal = together(lambda: _prepared(model, data, config, inputs, Path(scratch)))
        return _compare(prepared, config, legal, callbacks)


def _prepared(
    model: str | Path | PreTrainedModel,
    data: Data,
    config: ComparisonConfig,
    inputs: RunInputs,
    scratch: Path,
) -> tuple[PreparedTraining, LegalWidths]:
    """Prepare and check the training, and return it with the legal widths."""
    prepared = prepare(model, data, config.tuning(), inputs, scratch)
    check_parallel(prepared.arguments, config.tuning(), None)
    if prepared.options.sharded:
        raise ValueError("A comparison of criteria does not support FSDP. Leave it out.")
    for criterion in config.configs().values():
        criterion.check(prepared.structure)
    # Nothing is saved, so any widths are legal.
    legal = legal_widths(prepared.structure, channel_multiple=1, head_counts="any")
    for ratio in config.ratios:
        check_reachable(prepared.structure, ratio, legal, config.allocation)
    return prepared, legal


def _compare(
    prepared: PreparedTraining, config: ComparisonConfig, legal: LegalWidths, callbacks: Sequence[TrainerCallback]
) -> CriteriaComparison:
    """Tune while the criteria collect evidence, then compare their choices."""
    from transformers import PrinterCallback

    seed = prepared.arguments.seed
    configs = config.configs()
    criteria = {name: built_for(criterion, prepared.structure, seed) for name, criterion in configs.items()}
    listening = ListeningCallback(
        criteria, prepared.structure, decay=config.average_decay, bias_correction=config.average_bias_correction
    )
    logger.info("Loading %s", prepared.typed_name)
    model = prepared.load_model()
    trainer = prepared.trainer(model, [listening, *callbacks])
    trainer.remove_callback(PrinterCallback)
    data = counted(len(prepared.train_rows), prepared.task.row_name)
    logger.info("Watching %s on %s", counted(config.steps, "step"), data)
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
