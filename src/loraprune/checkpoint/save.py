"""From a pruned model to an ordinary checkpoint: config, merge, and a folder that appears complete or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.older_config import mend_config
from loraprune.checkpoint.older_tokenizer import mend_tokenizer
from loraprune.checkpoint.pruned_class import as_pruned_class, is_pruned_class, rebuilt
from loraprune.checkpoint.tied_weights import mend_tied_
from loraprune.layers.unwrap import base_model
from loraprune.record.appearing import appearing_folder
from loraprune.record.checksums import checksums
from loraprune.record.codec import encode
from loraprune.record.provenance import versions
from loraprune.record.replaceable import check_output
from loraprune.record.run_record import RECORD_FILE
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.surgery.config_widths import is_described, stock_values, write_widths_
from loraprune.surgery.merging import cast_, merged
from loraprune.surgery.slicing import slice_

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FREE_SPACE_MARGIN = 1.1


def _config_refuses(structure: Structure, values: Mapping[str, int]) -> bool:
    """Whether the stock config refuses a number of heads."""
    heads = values.get(structure.spec.config.heads)
    return structure.spec.heads_divide_hidden and heads is not None and structure.hidden_size % heads != 0


def _has_biases(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False))


def check_relaxed_class(structure: Structure, config: PretrainedConfig) -> None:
    """Make sure that a model may be exported as the related class that accepts any head count.

    Raises:
        ValueError: it has biases, which that class does not have.
    """
    if structure.spec.relaxed_class is not None and _has_biases(config):
        raise ValueError(
            f"Any head count needs an export as {structure.spec.relaxed_class}, which has no biases, and this model "
            "has some. Use --head-counts config."
        )


def _as_relaxed_class(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """The same function as a model of the class that accepts any head count; the tensors are shared."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert structure.spec.relaxed_class is not None
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "mlp_bias", "attention_bias", "pretraining_tp"):
        values.pop(key, None)
    config = AutoConfig.for_model(structure.spec.relaxed_class, **values, sliding_window=None)
    config._attn_implementation = model.config._attn_implementation
    relaxed = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[structure.spec.relaxed_class]
    return rebuilt(model, getattr(transformers, relaxed), config)


def finish(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    dtype: torch.dtype | None = None,
    *,
    original: PreTrainedModel | None = None,
    refitted: Collection[str] = (),
) -> PreTrainedModel:
    """Merge the adapter and write the widths into the config: a plain model of the transformers library.

    The model that is passed in is used up. The adapter is merged in 32 bits, and the sum is rounded once.

    Where a stock config cannot say the widths, it is a model of our class: see
    :mod:`loraprune.checkpoint.pruned_class`.

    Args:
        model: a sliced model or the ``PeftModel`` around it.
        structure: of the model before pruning.
        plan: that the model is at.
        dtype: of the result; None leaves the model's own.
        original: of a quantized model, the one that it was made from, uncut and in 16 or 32 bits: its weights take the
            place of the quantized ones. It is used up. None dequantizes. Either way the result is in CPU memory.
        refitted: names of quantized layers whose own weights are kept: those that a refit has changed.
    """
    if original is not None:
        slice_(original, structure, Plan.full(structure), plan)
    plain: Any = merged(model, dtype, original, refitted)
    if dtype is not None:
        cast_(plain, dtype)
    mend_tied_(plain)
    # trl replaces the forward of the instance while it trains.
    plain.__dict__.pop("forward", None)
    if dtype is not None:
        plain.config.dtype = dtype
    values = stock_values(structure, plan)
    refused = values is not None and _config_refuses(structure, values)
    relaxable = structure.spec.relaxed_class is not None and not _has_biases(plain.config)
    if values is None or is_described(plain.config) or is_pruned_class(plain) or (refused and not relaxable):
        plain = as_pruned_class(plain, structure, plan)
    else:
        write_widths_(plain.config, structure, plan)
        _share_config_(plain)
        if refused:
            plain = _as_relaxed_class(plain, structure)
    finished: PreTrainedModel = plain.eval()
    return finished


def _share_config_(model: PreTrainedModel) -> None:
    """Modules that got a config of their own, for the time in which widths differed, share the model's again."""
    for module in model.modules():
        if module.__dict__.pop("_loraprune_own_config", False):
            module.config = model.config  # type: ignore[assignment]


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Make sure that what will be written fits.

    Raises:
        OSError: it does not; the message says how much is needed and how much is free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    needed = int(needed_bytes * FREE_SPACE_MARGIN)
    if free < needed:
        raise OSError(
            f"The result needs about {needed / 1e9:.2f} GB in {existing}, and {free / 1e9:.2f} GB are free. "
            "Free some space, or choose another output folder."
        )


def save_checkpoint(
    output: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    card: str,
    record: dict[str, Any] | None = None,
    extras: Callable[[Path], None] | None = None,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a finished model as an ordinary checkpoint; the folder appears complete or not at all.

    Args:
        output: folder to make.
        model: merged, with its config.
        tokenizer: saved beside it, or None.
        card: text of ``README.md``.
        record: what was done; goes to ``pruning.json``. None leaves that to ``extras``.
        extras: writes further files into the folder, after the weights.
        overwrite: replace a result that is there.
        check: of the complete folder; see :func:`~loraprune.record.appearing.appearing_folder`.

    Raises:
        WriteError: the disk is full, or something else has taken the folder's place meanwhile.
        NonFiniteWeightsError: a weight is NaN or infinite; nothing is written.
    """
    check_finite(model)
    with appearing_folder(output, overwrite=overwrite, check=check) as folder:
        model.save_pretrained(folder)
        mend_config(folder, model)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
            mend_tokenizer(folder, tokenizer)
        if extras is not None:
            extras(folder)
        if record is not None:
            kept = {**record, "checksums": checksums(folder)}
            (folder / RECORD_FILE).write_text(json.dumps(encode(kept), indent=2), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def save_pruned(callback: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, output: str | Path) -> Path:
    """Save what a Trainer with a :class:`~loraprune.PruningCallback` leaves behind as an ordinary checkpoint.

    Args:
        callback: the callback of the run.
        model: ``trainer.model``; its adapter is merged.
        tokenizer: saved beside the model.
        output: folder to make; it must not exist or be empty.

    Raises:
        OutputExistsError: the folder holds something.
        ValueError: training has not begun.
    """
    run = callback.run
    if run is None:
        raise ValueError("The callback has seen no training yet, so there is nothing to save.")
    output = Path(output)
    check_output(output, overwrite=False)
    finished = finish(model, run.structure, run.plan)
    finished.config.use_cache = True  # switched off by trainers
    record = {
        "settings": {"pruning": run.config.to_saved()},
        "pruning": run.summary(),
        "plan": run.plan.to_json(),
        "versions": versions(),
    }
    save_checkpoint(output, finished, tokenizer, record=record, card=_short_card(run.structure))
    return output


def _short_card(structure: Structure) -> str:
    return f"# A pruned {structure.spec.model_type} model\n\nPruned with loraprune: see `pruning.json`.\n"


def save(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model that :func:`loraprune.cut_` has cut as an ordinary checkpoint.

    Widths that are the same in every layer make a checkpoint of the stock class. Others make one of our class over it,
    with its modeling file: it loads with ``import loraprune`` or with ``trust_remote_code``.

    Args:
        model: cut, or the ``PeftModel`` around it, whose adapter is merged. It is used up: go on with what
            :func:`loraprune.load` gives.
        folder: to make; it appears complete or not at all.
        tokenizer: or image processor, saved beside the model.
        dtype: of the weights; None leaves the model's own.
        overwrite: replace a folder that exists.

    Returns:
        The folder.

    Raises:
        OutputExistsError: the folder holds something, and ``overwrite`` is off.
        OSError: the disk is too full.
        ValueError: the widths differ from layer to layer, and the model's class is none of the transformers library.
    """
    output = Path(folder).expanduser()
    check_output(output, overwrite=overwrite)
    structure = describe(model)
    size = structure.num_parameters * (dtype or base_model(model).dtype).itemsize
    check_disk_space(output, size)
    finished = finish(model, structure, Plan.full(structure), dtype)
    structure = describe(finished)
    widths = {kind: [d.num_groups for d in structure.of_kind(kind)] for kind in structure.kinds}
    record = {"pruning": {"parameters": finished.num_parameters(), "widths": widths}, "versions": versions()}
    save_checkpoint(output, finished, tokenizer, record=record, card=_short_card(structure), overwrite=overwrite)
    return output
