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
    """Compare which groups criteria would remove, from one run that all of them watch; nothing is removed.

    Processes of one run share the sequences of each step; all of them have to call this.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        data: in any form that :func:`loraprune.prune` takes.
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
        prepared, legal = together(lambda: _prepared(model, data, config, inputs, Path(scratch)))
        return _compare(prepared, config, legal, callbacks)


def _prepared(
    model: str | Path | PreTrainedModel,
    data: Data,
    config: ComparisonConfig,
    inputs: RunInputs,
    scratch: Path,
) -> tuple[PreparedTraining, LegalWidths]:
    """What is tuned, and the widths that count, all of it checked."""
    prepared = prepare(model, data, config.tuning(), inputs, scratch)
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
