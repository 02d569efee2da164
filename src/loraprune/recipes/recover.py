"""Recipe for recovery: tune a pruned or sparse model by LoRA and return an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.compat.renamed import renamed_keywords
from loraprune.display.shown import run_display
from loraprune.pruning.config import PruningConfig
from loraprune.recipes.prune import PruneResult, run, run_folder
from loraprune.recipes.steps.check import prepare
from loraprune.recipes.steps.goals import given_goal
from loraprune.recipes.steps.prepared import RunInputs
from loraprune.recipes.steps.push import pushed
from loraprune.tasks.options import LoraOptions, RunOptions

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from loraprune.data.named import Data
    from loraprune.metrics.perplexity import Collator


@renamed_keywords(dataset="data")
def recover(
    model: str | Path | PreTrainedModel,
    data: Data,
    *,
    keep_zeros: bool | None = None,
    max_skipped_steps: int = 5,
    training: Mapping[str, Any] | TrainingArguments | None = None,
    lora: LoraConfig | LoraOptions | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    options: RunOptions | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    image_processor: Any = None,
    collator: Collator | None = None,
    verbosity: str = "warnings",
) -> PruneResult:
    """Tune a pruned or sparse model by LoRA, and merge the adapter.

    Zeros in the blocks' linear layers and experts stay zero, in any pattern: training and merge mask them
    (:func:`loraprune.keep_zeros_`). Layers outside the blocks, such as a classifier, are not masked. A model without
    zeros is tuned by plain LoRA.

    Args:
        model: a checkpoint's folder or Hub name, or a loaded model, modified in place.
        data: data in any form that :func:`loraprune.prune` takes.
        keep_zeros: keep zero weights zero; None does so if the model is sparse.
        max_skipped_steps: number of consecutive steps with NaN or Inf that are skipped before training stops.
        training: training arguments, as for :func:`loraprune.prune`.
        lora: our options or peft's configuration. Only plain LoRA can keep zeros.
        tokenizer: tokenizer of the model; None loads it from the checkpoint.
        options: output, measurements and other options of the run. Recovery changes no shapes, so neither latency nor
            a model without recovery is measured.
        callbacks: further callbacks of the Trainer.
        image_processor: image processor of a classifier, or name of a checkpoint with one; None loads the model's.
        collator: function that batches rows, instead of the task's own; image data may then have any columns.
        verbosity: ``progress`` prints the same as the command line to standard error; ``warnings`` or ``silent``.

    Returns:
        The tuned model in memory, and its folder if you set an output. Its plan keeps all groups. As in every recipe,
        the metrics ``dense`` are those before the run and ``pruned`` those after it.

    Raises:
        ValueError: an argument is wrong, or the adapter is not plain LoRA and zeros are to stay; raised before any
            training.
        InterruptedRunError: the run was stopped; the state is saved, and ``RunOptions(resume=True)`` resumes from it.
        TrainingDivergedError: gradients stayed NaN or Inf; the last good state is saved.
        BadResultError: the result is no better than chance; ``allow_bad_result`` writes it.
        DryRunError: ``RunOptions(dry_run=True)``: all checks passed, and no work was done.
    """
    options = options or RunOptions()
    goal = given_goal(options)
    if goal is not None:
        raise ValueError(f"You passed {goal}, and recovery removes nothing. Leave it out, or use prune.")
    inputs = RunInputs(
        training=training,
        lora=lora,
        tokenizer=tokenizer,
        options=replace(options, latency=False, unrecovered=False),
        image_processor=image_processor,
        collator=collator,
    )
    pruning = PruningConfig(ratio=0.0, repair="none", max_skipped_steps=max_skipped_steps)
    with run_display(verbosity) as display:
        with run_folder(inputs.options) as run_dir:
            prepared = prepare(model, data, pruning, inputs, run_dir, recovery=True, keep_zeros=keep_zeros)
            result = run(prepared, run_dir, callbacks, display)
        return pushed(result, inputs.options)
