"""Checks of a result: checksums, shapes, finite weights, a forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.finite import non_finite
from loraprune.checkpoint.load import default_device
from loraprune.checkpoint.source import ModelSource
from loraprune.checkpoint.weight_files import StoredTensor, stored_tensors, weight_files
from loraprune.measure.benchmark.random_inputs import InputSize, prefill_inputs
from loraprune.record.checksums import checksums
from loraprune.record.run_record import RECORD_FILE, RunRecord

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_TOKENS = 16
"""Length of the sequence that the model reads."""


class _WrongError(ValueError):
    """A check failed; the message says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class VerifiedFact:
    """Outcome of one check.

    Attributes:
        name: name of the check.
        passed: whether the check passed.
        text: finding of the check.
    """

    name: str
    passed: bool
    text: str


def verify(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[VerifiedFact, ...]:
    """Check that a checkpoint is intact: its weight files are unchanged, and its model computes.

    Every check runs, except the forward pass of a model that cannot be loaded.

    Args:
        folder: folder that a run, :func:`loraprune.save` or ``save_pretrained`` wrote.
        trust_remote_code: run code from the checkpoint, if no library has its class.

    Returns:
        ``checksums``, ``weights`` (finite), ``shapes`` (against the config) and ``forward pass``.

    Raises:
        ValueError: the folder does not exist.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Name one that loraprune or save_pretrained wrote.")
    facts = [_fact("checksums", lambda: _checksums(folder)), _fact("weights", lambda: _finite(folder))]
    models: list[PreTrainedModel] = []
    facts.append(_fact("shapes", lambda: _shapes(folder, trust_remote_code, models)))
    if models:
        facts.append(_fact("forward pass", lambda: _forward(models[0])))
    return tuple(facts)


def _fact(name: str, look: Any) -> VerifiedFact:
    from safetensors import SafetensorError

    try:
        return VerifiedFact(name=name, passed=True, text=look())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        return VerifiedFact(name=name, passed=False, text=" ".join(str(error).split()))


def _checksums(folder: Path) -> str:
    kept = RunRecord.read(folder).checksums if (folder / RECORD_FILE).exists() else None
    if not kept:
        return "no checksums saved"
    found = checksums(folder)
    if missing := sorted(kept.keys() - found.keys()):
        raise _WrongError(f"{missing[0]} is missing")
    if added := sorted(found.keys() - kept.keys()):
        raise _WrongError(f"{added[0]} was not there when the result was written")
    if changed := [name for name in kept if kept[name] != found[name]]:
        raise _WrongError(f"{changed[0]} is not the file that was written")
    return _counted(len(kept), "file") + " as written"


def _finite(folder: Path) -> str:
    stored = _stored(folder)
    for name, dtype, nans, infinities in non_finite(_tensors(stored)):
        kind = str(dtype).removeprefix("torch.")
        raise _WrongError(f"{name} holds {nans:,} NaN and {infinities:,} Inf ({kind})")
    return _counted(len(stored), "tensor") + ", all finite"


def _stored(folder: Path) -> dict[str, StoredTensor]:
    stored = stored_tensors(weight_files(folder))
    if not stored:
        raise _WrongError("there are no weights in safetensors files")
    return stored


def _tensors(stored: dict[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in dict.fromkeys(tensor.file for tensor in stored.values()):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                yield name, file.get_tensor(name)


def _shapes(folder: Path, trust_remote_code: bool, models: list[PreTrainedModel]) -> str:
    """Load the model, which checks every shape against the config, and check that it has a place for every tensor."""
    source = ModelSource.of(folder, described=False, quantized=True, trust_remote_code=trust_remote_code)
    device = default_device()
    model = source.load(source.working_dtype(device), device)
    if not (source.quantized or source.packed):
        unused = _unused(model, list(_stored(folder)))
        if unused:
            raise _WrongError(f"{_counted(len(unused), 'tensor')} with no place in the config's model: {unused[0]}")
    models.append(model)
    return f"as the config of {type(model).__name__} says, {model.num_parameters():,} parameters"


def _unused(model: PreTrainedModel, stored: Sequence[str]) -> list[str]:
    """Return stored tensors without a place in the model; none if transformers renames tensors on loading."""
    own = model.state_dict()
    taken = {own[name].data_ptr() for name in stored if name in own}
    if any(tensor.data_ptr() not in taken for tensor in own.values()):
        return []
    known: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return [name for name in stored if name not in own and not any(re.search(pattern, name) for pattern in known)]


def _forward(model: PreTrainedModel) -> str:
    inputs = prefill_inputs(model, InputSize(tokens=_TOKENS), model.device)
    with torch.no_grad():
        logits = model(**inputs).logits
    if not bool(torch.isfinite(logits).all()):
        raise _WrongError("logits are NaN or infinite")
    return f"finite logits, shape {tuple(logits.shape)}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
