"""Checks that a checkpoint's config agrees with its weight files. If they disagree, the files count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.architectures import UnsupportedArchitectureError, spec_for
from loraprune.checkpoint.fingerprint import hub_folder
from loraprune.checkpoint.load import PRUNED
from loraprune.checkpoint.reading import CheckpointError
from loraprune.checkpoint.tied_weights import says_tied, untie_config_
from loraprune.checkpoint.weight_files import StoredTensor, stored_tensors, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ROWS = 4096


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """Return a checkpoint's folder, or the cache folder of a Hub checkpoint; None if it was not downloaded."""
    path = Path(name).expanduser()
    return path if path.is_dir() else hub_folder(name, revision)


def agreeing(config: PretrainedConfig, name: str, revision: str | None = None) -> PretrainedConfig:
    """Correct a checkpoint's config by its weight files. Without local files, the config stays as it is.

    Args:
        config: the config, modified in place: it becomes untied if the files hold a head that differs from the
            embedding.
        name: name of the checkpoint.
        revision: revision of a Hub checkpoint.

    Raises:
        CheckpointError: config and files have different numbers of layers.
        WeightIndexError: the index of the weights names files outside its folder.
    """
    from safetensors import SafetensorError

    folder = local_folder(name, revision)
    if folder is None:
        return config
    files = weight_files(folder)
    try:
        stored = stored_tensors(files)
        differs = says_tied(config) and stored_head_differs(config, stored)
    except (OSError, ValueError, SafetensorError):  # loading the weights reports what is wrong with them
        return config
    _check_layers(config, name, stored)
    if differs:
        untie_config_(config, name)
    return config


def _model_class(config: PretrainedConfig) -> Any:
    """Return the stock class that a config names; None if transformers has no such class."""
    import transformers

    names = getattr(config, "architectures", None) or ("",)
    return getattr(transformers, names[0].removeprefix(PRUNED), None)


def stored_head_differs(config: PretrainedConfig, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the files hold a head that differs from the embedding.

    Args:
        config: config of the model.
        stored: its tensors in the files, by name.
    """
    pairs = getattr(_model_class(config), "_tied_weights_keys", None)
    if not isinstance(pairs, Mapping):
        return False
    for head, embedding in pairs.items():
        one = stored.get(head)
        other = stored.get(embedding) or stored.get(embedding.partition(".")[2])
        if one is not None and other is not None and _differ(head, one, embedding, other, stored):
            return True
    return False


def _differ(
    head: str, one: StoredTensor, embedding: str, other: StoredTensor, stored: Mapping[str, StoredTensor]
) -> bool:
    """Whether two stored tensors differ. Reads ``_ROWS`` rows at a time."""
    from safetensors import safe_open

    if one.shape != other.shape:
        return True
    inside = embedding if embedding in stored else embedding.partition(".")[2]
    with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
        a, b = first.get_slice(head), second.get_slice(inside)
        rows = one.shape[0] if one.shape else 0
        return any(
            not bool((a[start : start + _ROWS] == b[start : start + _ROWS]).all()) for start in range(0, rows, _ROWS)
        )


def _stacks(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    """Yield the path of each list of blocks, with the number of blocks in the config."""
    try:
        spec = spec_for(config)
    except UnsupportedArchitectureError:
        return
    shortened: Mapping[str, int] = (getattr(config, "pruned", None) or {}).get("lists", {})
    for stack in spec.stacks:
        in_decoder = getattr(config, "is_encoder_decoder", False) and stack.blocks.startswith("decoder.")
        names = ("num_decoder_layers",) if in_decoder else ("num_hidden_layers", "num_layers", "n_layer")
        said = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
        if said is not None and "*" not in stack.blocks:
            yield stack.blocks, shortened.get(stack.blocks, said)


def _check_layers(config: PretrainedConfig, name: str, stored: Mapping[str, StoredTensor]) -> None:
    ignored = getattr(_model_class(config), "_keys_to_ignore_on_load_unexpected", None) or ()
    counted = [tensor for tensor in stored if not any(re.search(pattern, tensor) for pattern in ignored)]
    for path, said in _stacks(config):
        first, _, rest = path.partition(".")
        # In the files of a model saved without its head, names lack the first part.
        pattern = re.compile(rf"(?:{re.escape(first)}\.)?{re.escape(rest)}\.(\d+)\.")
        found = {int(match[1]) for tensor in counted if (match := pattern.match(tensor))}
        if found and max(found) + 1 != said:
            raise CheckpointError(
                f"The weights of {name} have {max(found) + 1} layers ({path}), but its config says {said}. Correct the "
                "number in config.json, or fetch the checkpoint again."
            )
