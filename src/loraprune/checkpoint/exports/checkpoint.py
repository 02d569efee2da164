"""A checkpoint folder to export: its config, the widths of each block, and its tensors one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.agreement import stored_head_differs
from loraprune.checkpoint.reading import MODEL_CONFIG, CheckpointError, read_config_values, reading
from loraprune.checkpoint.tied_weights import says_tied, untie_config_
from loraprune.checkpoint.weight_files import (
    MODEL_FILES,
    StoredTensor,
    WeightIndexError,
    stored_tensors,
    weight_files,
)
from loraprune.record.numbers import counted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

RAGGED_PREFIX = "loraprune_"
"""Prefix of a ragged checkpoint's ``model_type``; the family that was pruned follows."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder with ``config.json`` and safetensors.

    Attributes:
        folder: the folder.
        model_type: family; for a ragged checkpoint, that of the unpruned model.
        values: content of ``config.json``, with ``tie_word_embeddings`` corrected by the stored tensors.
        tensors: all stored tensors by name.
    """

    folder: Path
    model_type: str
    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def config(self) -> PretrainedConfig:
        """Return the config as the family's class reads it: with defaults, and with old keys converted.

        Raises:
            RuntimeFormatError: transformers does not know the family, or rejects the values.
        """
        from transformers import AutoConfig

        values = {key: value for key, value in self.values.items() if key not in ("model_type", "pruned", "auto_map")}
        file = self.folder / MODEL_CONFIG
        try:
            with reading(f"{file} cannot be read", f"Correct {file}, or fetch the checkpoint again.", values):
                return AutoConfig.for_model(self.model_type, **values)
        except CheckpointError as error:
            if "Unrecognized model identifier" in str(error):
                raise RuntimeFormatError(
                    f"transformers does not know models of type {self.model_type!r}, which {file} names. Export a "
                    "model of a known type."
                ) from error
            raise RuntimeFormatError(str(error)) from error

    def widths(self) -> tuple[BlockWidths, ...]:
        """Return the widths of every decoder block of a Llama-like model."""
        return block_widths(self.config().to_dict(), self.values.get("pruned"))

    def load(self, name: str) -> Tensor:
        """Read one tensor."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's config and the headers of its weights, but no weights.

    Raises:
        RuntimeFormatError: the folder is not a checkpoint of merged 16- or 32-bit weights in safetensors.
    """
    values = read_config(folder)
    if values.get("quantization_config"):
        raise RuntimeFormatError(
            f"{folder} holds quantized weights, but the export needs 16 or 32 bits. First save a dequantized model."
        )
    found = Checkpoint(folder=folder, model_type=_family(values), values=values, tensors=_tensors(folder))
    config = found.config()
    if says_tied(config) and stored_head_differs(config, found.tensors):
        untie_config_(config, str(folder))
        return replace(found, values={**values, "tie_word_embeddings": False})
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json``.

    Raises:
        RuntimeFormatError: there is no ``config.json``, or it is not a model's config.
    """
    file = folder / MODEL_CONFIG
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise RuntimeFormatError(
                f"{folder} holds only an adapter. Export the folder of the run instead, which has it merged. Merge an "
                "adapter from elsewhere with peft's merge_and_unload(), save the model and its tokenizer with "
                "save_pretrained, and export that folder."
            )
        raise RuntimeFormatError(
            f"{folder} is not a checkpoint: it has no config.json. Name a folder that loraprune or "
            "save_pretrained wrote."
        )
    try:
        return read_config_values(file)
    except CheckpointError as error:
        raise RuntimeFormatError(str(error)) from error


def _family(values: Mapping[str, Any]) -> str:
    pruned = values.get("pruned")
    if pruned is None:
        return str(values["model_type"])
    return str(pruned.get("base_model_type") or values["model_type"].removeprefix(RAGGED_PREFIX))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError

    whole = any((folder / name).is_file() for name in MODEL_FILES)
    try:
        files = weight_files(folder) if whole else [folder / MODEL_FILES[0]]
    except WeightIndexError as error:
        raise RuntimeFormatError(str(error)) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RuntimeFormatError(
            f"{folder} has no {missing[0]}. Only safetensors weights can be exported: save the model with "
            "save_pretrained."
        )
    found: dict[str, StoredTensor] = {}
    for file in files:
        try:
            found |= stored_tensors([file])
        except SafetensorError as error:
            raise RuntimeFormatError(f"{file} cannot be read: {_first_line(error)}") from error
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_FORMAT = 1
"""Version of the description of ragged widths that this code reads."""

_BLOCK = "model.layers.{}"


@dataclass(frozen=True, kw_only=True)
class BlockWidths:
    """Widths of one decoder block.

    Attributes:
        num_attention_heads: number of query heads.
        num_key_value_heads: number of KV heads.
        intermediate_size: number of FFN channels.
    """

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name, width in vars(self).items():
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise RuntimeFormatError(f"A block has {name} = {width!r}; it must be a whole number of 1 or more.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RuntimeFormatError(
                f"A block has {self.num_attention_heads} query heads and {self.num_key_value_heads} KV heads. The "
                "first number must be a multiple of the second."
            )


def block_widths(config: Mapping[str, Any], pruned: Mapping[str, Any] | None) -> tuple[BlockWidths, ...]:
    """Return the widths of every block.

    Args:
        config: values of a config; they apply to blocks without widths of their own.
        pruned: value of ``pruned`` in a ragged checkpoint's config; None if all blocks have the same widths.

    Raises:
        RuntimeFormatError: ``pruned`` has an unknown version, or names blocks or widths that do not exist.
    """
    heads = config["num_attention_heads"]
    common = BlockWidths(
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        intermediate_size=config["intermediate_size"],
    )
    names = [_BLOCK.format(number) for number in range(config["num_hidden_layers"])]
    blocks = _blocks(pruned)
    unknown = sorted(set(blocks) - set(names))
    if unknown:
        raise RuntimeFormatError(
            f"config.json describes the block {unknown[0]!r}, but the model has {counted(len(names), 'block')}, "
            f"{names[0]} to {names[-1]}."
        )
    return tuple(_overridden(common, name, blocks.get(name, {})) for name in names)


def _blocks(pruned: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, int]]:
    if pruned is None:
        return {}
    if pruned.get("format") != _FORMAT:
        raise RuntimeFormatError(
            f"config.json describes its widths in format {pruned.get('format')!r}, but this version of loraprune reads "
            f"{_FORMAT}. Export with the version that wrote the checkpoint."
        )
    blocks: Mapping[str, Mapping[str, int]] = pruned["blocks"]
    return blocks


def _overridden(common: BlockWidths, name: str, widths: Mapping[str, int]) -> BlockWidths:
    unknown = sorted(set(widths) - set(vars(common)))
    if unknown:
        raise RuntimeFormatError(
            f"{name} has its own width for {unknown[0]!r}, but other runtimes can only read {', '.join(vars(common))}."
        )
    return replace(common, **widths)


class RuntimeFormatError(ValueError):
    """A checkpoint cannot be written in a format. The message says why, and often what can load it instead."""


_EXTRAS = {"gguf": "gguf", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}
"""Our extra for each optional package."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: name to import.
        package: name of the package for pip.
        purpose: purpose of the package, as the subject of the message.

    Raises:
        RuntimeFormatError: the package is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        extra = _EXTRAS.get(package)
        install = package if extra is None else f'"loraprune[{extra}]"'
        raise RuntimeFormatError(f"{purpose} needs the package {package}: pip install {install}") from error
