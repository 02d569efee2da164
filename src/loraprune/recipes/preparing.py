"""Checks before any long work: everything a run needs but the weights, cheapest first."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation import check_reachable, ratio_for_parameters
from loraprune.data.formats import PreparedData, prepare_dataset
from loraprune.data.sources import load_source
from loraprune.evaluation.perplexity import HeldOut
from loraprune.export import check_disk_space, check_output, check_relaxed_class
from loraprune.recipes.arguments import training_arguments
from loraprune.recipes.loading import (
    checkpoint_dtype,
    default_device,
    load_config,
    load_model,
    load_tokenizer,
    meta_model,
    working_dtype,
)
from loraprune.recipes.lora import LoraOptions, lora_config
from loraprune.recipes.options import RunOptions
from loraprune.structure import Structure, describe
from loraprune.training.callback import SLICEABLE_OPTIMIZERS
from loraprune.training.config import PruningConfig
from loraprune.training.state import last_checkpoint
from loraprune.widths import legal_widths

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

logger = logging.getLogger("loraprune")

HELD_OUT_SHARE = 20
RUN_ENTRIES = ("checkpoint-", "adapter", "runs", "README.md")
"""What a Trainer and we write into a run's folder."""


@dataclass(kw_only=True)
class Job:
    """A run that was checked and can begin.

    Attributes:
        name: of the checkpoint, for the record.
        model: given by the user, or None: it is loaded from ``name``.
        config: of the model before pruning.
        train_rows: tokenized rows to train on; ``held_out``: sequences to measure on.
        stored_dtype: dtype of the checkpoint, and of the result.
        checkpoint: to resume from.
    """

    name: str
    model: PreTrainedModel | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    pruning: PruningConfig
    arguments: SFTConfig
    lora: LoraConfig
    data: PreparedData
    train_rows: Dataset
    held_out: HeldOut | None
    structure: Structure
    stored_dtype: torch.dtype
    device: torch.device
    options: RunOptions
    checkpoint: Path | None

    def load_model(self) -> PreTrainedModel:
        """The checkpoint's model, on the job's device and in the dtype to train in."""
        return load_model(
            self.name,
            working_dtype(self.stored_dtype, self.device),
            self.device,
            trust_remote_code=self.options.trust_remote_code,
            revision=self.options.revision,
        )


def prepare(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    pruning: PruningConfig,
    training: Mapping[str, Any],
    lora: LoraConfig | LoraOptions | None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    options: RunOptions,
    run_dir: Path,
) -> Job:
    """Check all that was given, cheapest first, and load everything but the weights."""
    checkpoint = _check_folders(options)
    loaded = None if isinstance(model, (str, Path)) else model
    if isinstance(model, (str, Path)):
        model = str(Path(model).expanduser()) if str(model).startswith("~") else str(model)
    _check_sources_outside_output(model, dataset, options)
    name = str(model) if loaded is None else str(getattr(loaded.config, "_name_or_path", "") or "model")
    config = (
        load_config(name, trust_remote_code=options.trust_remote_code, revision=options.revision)
        if loaded is None
        else loaded.config
    )
    device = default_device() if loaded is None else next(loaded.parameters()).device
    arguments = training_arguments(
        training, run_dir=run_dir, device=device, context=getattr(config, "max_position_embeddings", None)
    )
    if options.output is None:
        arguments.save_strategy = "no"
    config = copy.deepcopy(config)
    lora = LoraOptions() if lora is None else lora
    structure = describe(meta_model(config) if loaded is None else loaded)
    pruning = _check_ratio(pruning, structure, config, options)
    pruning = replace(pruning, seed=arguments.seed)
    _check_optimizer(pruning, arguments)
    stored_dtype = checkpoint_dtype(config) if loaded is None else loaded.dtype
    _check_space(structure, stored_dtype, device, pruning, arguments, options)
    tokenizer = _find_tokenizer(tokenizer, name, loaded, options)
    prepared, train_rows, held_out = _prepare_data(dataset, tokenizer, arguments, options)
    _check_token_ids(prepared, tokenizer, config)
    lora = lora_config(lora, structure) if isinstance(lora, LoraOptions) else lora
    if checkpoint is not None:
        _check_same_adapter(checkpoint, lora, name)
    return Job(
        name=name,
        model=loaded,
        config=config,
        tokenizer=tokenizer,
        pruning=pruning,
        arguments=arguments,
        lora=lora,
        data=prepared,
        train_rows=train_rows,
        held_out=held_out,
        structure=structure,
        stored_dtype=stored_dtype,
        device=device,
        options=options,
        checkpoint=checkpoint,
    )


def _check_optimizer(pruning: PruningConfig, arguments: SFTConfig) -> None:
    """Make sure that the optimizer's state can shrink with the weights."""
    if pruning.ratio > 0.0 and arguments.optim not in SLICEABLE_OPTIMIZERS:
        raise ValueError(
            f"--optim {getattr(arguments.optim, 'value', arguments.optim)!s} keeps a state that cannot be cut with "
            f"the weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
        )


def _check_space(
    structure: Structure,
    stored: torch.dtype,
    device: torch.device,
    pruning: PruningConfig,
    arguments: SFTConfig,
    options: RunOptions,
) -> None:
    """Make sure that the result fits on the disk, with the refitted weights that each saved state holds."""
    if options.output is None:
        return
    consumers = sum(
        dimension.num_groups * dimension.consumer.group_size * structure.hidden_size for dimension in structure
    )
    states = (arguments.save_total_limit or 2) + 1 if pruning.refit and arguments.save_strategy != "no" else 0
    in_states = states * consumers * working_dtype(stored, device).itemsize
    check_disk_space(options.output, structure.num_parameters * stored.itemsize + in_states)


def _find_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    name: str,
    loaded: PreTrainedModel | None,
    options: RunOptions,
) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or the one of a checkpoint: the one named, or the model's own."""
    if tokenizer is None and loaded is not None and not getattr(loaded.config, "_name_or_path", ""):
        raise ValueError("The model that was passed in names no checkpoint to load a tokenizer from: pass tokenizer=.")
    if tokenizer is None:
        return load_tokenizer(name, trust_remote_code=options.trust_remote_code, revision=options.revision)
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(str(tokenizer), trust_remote_code=options.trust_remote_code)
    return tokenizer


def _check_folders(options: RunOptions) -> Path | None:
    """Find out whether the run may write where it wants to, and where it goes on from."""
    output, run_dir = options.output, options.run_dir
    if output is None or run_dir is None:
        return None
    check_output(output, overwrite=options.overwrite)
    foreign = [path.name for path in run_dir.glob("*") if not path.name.startswith(RUN_ENTRIES)]
    if foreign:
        raise ValueError(
            f"The state of the run goes to {run_dir}, but that folder holds something else ({foreign[0]}). Move it "
            "away, or name another output folder."
        )
    checkpoint = last_checkpoint(run_dir) if run_dir.is_dir() else None
    if options.resume:
        if checkpoint is None:
            raise ValueError(f"There is nothing to resume: {run_dir} holds no saved state. Start without --resume.")
        return checkpoint
    if checkpoint is not None and not options.overwrite:
        raise ValueError(f"{run_dir} holds an interrupted run. Go on with --resume, or start anew with --overwrite.")
    return None


def _check_sources_outside_output(model: object, dataset: object, options: RunOptions) -> None:
    """Make sure that replacing the output folder deletes nothing that the run reads."""
    if options.output is None:
        return
    output = options.output.resolve()
    for source in (model, dataset, options.eval_data):
        if isinstance(source, (str, Path)) and Path(source).exists() and Path(source).resolve().is_relative_to(output):
            raise ValueError(f"{source} lies in the output folder {options.output}. Name another output folder.")


def _check_token_ids(data: PreparedData, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Make sure that the model has an embedding for every token of the data."""
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None or len(tokenizer) <= vocabulary:
        return
    largest = max(max(row["input_ids"]) for row in data.dataset)
    if largest >= vocabulary:
        raise ValueError(
            f"The tokenizer does not fit the model: the data has token {largest}, and the model knows {vocabulary}."
        )


def _check_same_adapter(checkpoint: Path, lora: LoraConfig, name: str) -> None:
    """Make sure that a run goes on with the model and the adapter that it was started with."""
    saved = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(lora.init_lora_weights, str) and lora.init_lora_weights != "gaussian":
        raise ValueError(
            f"A run with init_lora_weights={lora.init_lora_weights!r} changes the base and cannot be resumed."
        )
    before = {"model": saved.get("base_model_name_or_path"), "r": saved["r"], "alpha": saved["lora_alpha"]}
    now = {"model": name, "r": lora.r, "alpha": lora.lora_alpha}
    changed = [f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] not in (None, "", now[key])]
    if not isinstance(lora.target_modules, str) and set(saved["target_modules"]) != set(lora.target_modules or []):
        changed.append("target modules")
    if changed:
        raise ValueError(
            f"The interrupted run was started differently ({', '.join(changed)}). Resume it with the same options, or "
            "start anew with --overwrite."
        )


def _check_ratio(
    pruning: PruningConfig, structure: Structure, config: PretrainedConfig, options: RunOptions
) -> PruningConfig:
    """Turn a parameter target into a ratio, and make sure that the ratio can be met."""
    if options.target_params is not None:
        pruning = replace(pruning, ratio=ratio_for_parameters(structure, options.target_params))
    if pruning.any_head_count:
        check_relaxed_class(structure, config)
    if pruning.ratio > 0.0:
        legal = legal_widths(
            structure, channel_multiple=pruning.channel_multiple, any_head_count=pruning.any_head_count
        )
        check_reachable(structure, pruning.ratio, legal)
    return pruning


def _prepare_data(
    dataset: str | Path | Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    options: RunOptions,
) -> tuple[PreparedData, Dataset, HeldOut | None]:
    """Tokenize, and set sequences aside to measure on: of ``eval_data``, or a twentieth of the training data."""

    def prepared(source: str | Path | Dataset, split: str) -> PreparedData:
        if not isinstance(source, (str, Path)):
            rows = source
        elif Path(source).is_file():
            rows = load_source(str(source))
        else:
            rows = load_source(str(source), split=split, name=options.data_name)
        assert arguments.max_length is not None
        return prepare_dataset(rows, tokenizer, max_length=arguments.max_length, answers_only=options.answers_only)

    data = prepared(dataset, options.split)
    _tell_of_lost_rows(data, arguments)
    rows = data.dataset
    if options.eval_sequences == 0:
        return data, rows, None
    if options.eval_data is not None:
        held = prepared(options.eval_data, options.eval_split).dataset
        return data, rows, _held_out(held.select(range(min(options.eval_sequences, len(held)))))
    count = min(options.eval_sequences, len(rows) // HELD_OUT_SHARE)
    if count == 0:
        logger.info("The data is too short to hold some of it out: perplexity is not measured.")
        return data, rows, None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(arguments.seed)).tolist()
    return data, rows.select(sorted(order[count:])), _held_out(rows.select(sorted(order[:count])))


def _tell_of_lost_rows(data: PreparedData, arguments: SFTConfig) -> None:
    """Say which rows are not trained on as they stand: a user may have meant otherwise."""
    total = len(data.dataset) + data.num_dropped + data.num_empty
    for number, what in (
        (data.num_truncated, f"cut to {arguments.max_length} tokens (--max-length)"),
        (data.num_dropped, "left out, since nothing to train is left of them within --max-length"),
        (data.num_empty, "left out, since they hold no text or no answer"),
    ):
        if number:
            logger.warning("warning: training rows %s: %d of %d", what, number, total)


def _held_out(rows: Dataset) -> HeldOut:
    sequences = []
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        sequences.append((ids, torch.tensor(row["labels"]) if "labels" in row else ids))
    return HeldOut(sequences=sequences)
