"""Saving of a pruned model as an ordinary checkpoint. The folder appears complete or not at all."""

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
    """Whether the stock config does not allow the number of heads."""
    heads = values.get(structure.spec.config.heads)
    return structure.spec.heads_divide_hidden and heads is not None and structure.hidden_size % heads != 0


def _has_biases(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False))


def check_relaxed_class(structure: Structure, config: PretrainedConfig) -> None:
    """Make sure that a model can be saved as the related class that accepts any head count.

    Raises:
        ValueError: the model has biases, but that class has none.
    """
    if structure.spec.relaxed_class is not None and _has_biases(config):
        raise ValueError(
            f"--head-counts any saves the model as {structure.spec.relaxed_class}, which has no biases, but this model "
            "has biases. Use --head-counts config."
        )


def _as_relaxed_class(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """Return a model as the related class that accepts any head count. The tensors are shared."""
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
    """Merge the adapter, write the widths into the config, and return a plain model of the transformers library.

    The adapter is merged in 32 bits, and the sum is rounded once. If no stock config can state the widths, the result
    is a model of our subclass: see :mod:`loraprune.checkpoint.pruned_class`.

    Args:
        model: a sliced model, or the ``PeftModel`` around it, modified in place.
        structure: structure of the model before pruning.
        plan: plan that the model was cut to.
        dtype: dtype of the result; None keeps the model's own.
        original: for a quantized model, the unquantized and uncut model that it was made from, modified in place. Its
            weights replace the quantized ones; with None, these are dequantized. In both cases the result of a
            quantized model is in CPU memory.
        refitted: names of quantized layers that keep their own weights because a refit changed them.
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
    """Give modules the model's config again if they got a copy while widths differed between blocks."""
    for module in model.modules():
        if module.__dict__.pop("_loraprune_own_config", False):
            module.config = model.config  # type: ignore[assignment]


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Make sure that the disk has room for a result.

    Raises:
        OSError: it does not; the message states the needed and the free space.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    needed = int(needed_bytes * FREE_SPACE_MARGIN)
    if free < needed:
        raise OSError(
            f"The result needs about {needed / 1e9:.2f} GB in {existing}, but only {free / 1e9:.2f} GB are free. "
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
    """Write a finished model as an ordinary checkpoint. The folder appears complete or not at all.

    Args:
        output: folder to write.
        model: merged model, with its config.
        tokenizer: tokenizer to save beside the model, or None.
        card: text of ``README.md``.
        record: content of ``pruning.json``; None if ``extras`` writes that file.
        extras: function that writes more files into the folder, after the weights.
        overwrite: replace an existing result.
        check: check of the complete folder; see :func:`~loraprune.record.appearing.appearing_folder`.

    Raises:
        WriteError: the disk is full, or the folder was created or changed meanwhile.
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


def save_pruned(
    callback: Any,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    output: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Save the model of a Trainer with a :class:`~loraprune.PruningCallback` as an ordinary checkpoint.

    Args:
        callback: callback of the run.
        model: ``trainer.model``, modified in place; its adapter is merged.
        tokenizer: tokenizer to save beside the model, or None.
        output: folder to write.
        overwrite: replace an existing result.

    Raises:
        OutputExistsError: the folder is not empty, and ``overwrite`` is False; the model is unchanged.
        ValueError: training has not started.
    """
    run = callback.run
    if run is None:
        raise ValueError("The callback has not seen any training yet, so there is nothing to save. Train first.")
    output = Path(output).expanduser()
    check_output(output, overwrite=overwrite)
    base = _base_of(model)
    finished = finish(model, run.structure, run.plan)
    finished.config.use_cache = True  # trainers switch it off
    record = base | {
        "settings": {"pruning": run.config.to_saved()},
        "pruning": run.summary(),
        "plan": run.plan.to_json(),
        "versions": versions(),
    }
    card = _short_card(run.structure, base)
    save_checkpoint(output, finished, tokenizer, record=record, card=card, overwrite=overwrite)
    return output


def _base_of(model: nn.Module) -> dict[str, str]:
    """Return the name that a model was loaded by, as the record holds it; nothing for a model made in memory."""
    name = str(getattr(base_model(model).config, "_name_or_path", "") or "")
    return {"base_model": name} if name else {}


def _short_card(structure: Structure, base: dict[str, str]) -> str:
    made_from = f" from `{base['base_model']}`" if base else ""
    title = f"# A pruned {structure.spec.model_type} model"
    return f"{title}\n\nPruned{made_from} with loraprune: see `pruning.json`.\n"


def save(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model that :func:`loraprune.cut_` has cut as an ordinary checkpoint.

    If all layers have the same widths, the checkpoint has the stock class. Otherwise it has a subclass, with its
    modeling file: it loads with ``import loraprune`` or with ``trust_remote_code``.

    Args:
        model: cut model, or the ``PeftModel`` around it, whose adapter is merged. It is modified in place and must not
            be used afterwards: continue with the model that :func:`loraprune.load` returns.
        folder: folder to write; it appears complete or not at all.
        tokenizer: tokenizer or image processor to save beside the model.
        dtype: dtype of the weights; None keeps the model's own.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        OutputExistsError: the folder is not empty, and ``overwrite`` is off.
        OSError: the disk has too little space.
        ValueError: the widths differ between layers, and the model's class is not in the transformers library.
    """
    output = Path(folder).expanduser()
    check_output(output, overwrite=overwrite)
    base = _base_of(model)
    structure = describe(model)
    size = structure.num_parameters * (dtype or base_model(model).dtype).itemsize
    check_disk_space(output, size)
    finished = finish(model, structure, Plan.full(structure), dtype)
    structure = describe(finished)
    widths = {kind: [d.num_groups for d in structure.of_kind(kind)] for kind in structure.kinds}
    record = base | {"pruning": {"parameters": finished.num_parameters(), "widths": widths}, "versions": versions()}
    save_checkpoint(output, finished, tokenizer, record=record, card=_short_card(structure, base), overwrite=overwrite)
    return output
