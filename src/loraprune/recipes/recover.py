"""The recipe of recovery: tune a pruned or sparse model by LoRA, and hand back an ordinary checkpoint."""

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

    Zeros in the blocks' linear layers and experts, whichever pattern they have, stay zero: they are masked in training
    and in the merge (:func:`loraprune.keep_zeros_`). Layers outside the blocks, such as a classifier's own, are none
    of these. A model without zeros is tuned by plain LoRA.

    Args:
        model: a checkpoint's folder or hub name, or a loaded model, which is used up.
        data: in any form that :func:`loraprune.prune` takes.
        keep_zeros: whether weights that are zero stay zero; None: where the model is sparse.
        max_skipped_steps: steps in a row with NaN or Inf that are skipped before training stops.
        training: training arguments, as for :func:`loraprune.prune`.
        lora: our options or peft's configuration. Only plain LoRA can keep zeros.
        tokenizer: of the model; None loads it from the checkpoint.
        options: where the result goes, what is measured, and so on. Nothing changes its shape, so that neither latency
            nor a model without recovery is measured.
        callbacks: further callbacks of the Trainer.
        image_processor: of an image classifier, or the name of a checkpoint that has one; None loads the model's own.
        collator: makes batches of rows in place of the task's own; data of images may then have any columns.
        verbosity: ``progress`` shows on standard error what the command line shows; ``warnings`` or ``silent``.

    Returns:
        The tuned model in memory, and its folder if one was asked for. Its plan keeps all groups; the metrics call
        what was measured before ``dense`` and what was measured after ``pruned``, as those of every recipe.

    Raises:
        ValueError: something given is wrong, or is no plain LoRA while zeros are to stay; raised before any training.
        InterruptedRunError: Ctrl-C; the state is saved and ``RunOptions(resume=True)`` goes on from it.
        TrainingDivergedError: gradients stayed NaN or Inf; the last good state is saved.
        BadResultError: the result is no better than chance; ``allow_bad_result`` writes it.
        DryRunError: ``RunOptions(dry_run=True)``; everything was checked, and nothing was done.
    """
    options = options or RunOptions()
    goal = given_goal(options)
    if goal is not None:
        raise ValueError(f"{goal} was given, and recovery removes nothing. Leave it out, or use prune.")
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
