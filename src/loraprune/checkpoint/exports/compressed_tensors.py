"""Export of 2:4 checkpoints to the layout of the compressed-tensors package, which older versions of vLLM read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, require
from loraprune.checkpoint.exports.sparse_checkpoint import (
    SparseCheckpoint,
    SparseFolderResult,
    check_folder,
    read_sparse_checkpoint,
    write_sparse_folder,
)
from loraprune.checkpoint.weight_files import INDEX

if TYPE_CHECKING:
    from torch import Tensor

REQUIREMENT = "compressed-tensors>=0.12,<0.14"
"""Versions that write 2:4 weights and do not restrict transformers. Versions 0.9 to 0.14 write them; 0.14 requires an
older transformers than this package, and 0.15 removed the layout."""

_MODULE = "compressed_tensors"


def export_compressed_tensors(folder: Path, output: Path, *, overwrite: bool = False) -> SparseFolderResult:
    """Write a 2:4 checkpoint in the ``sparse-24-bitmask`` layout, with the package's own classes.

    Args:
        folder: a checkpoint with 2:4 zeros and uniform widths.
        output: folder to make; it appears complete or not at all.
        overwrite: replace an existing folder.

    Raises:
        RuntimeFormatError: the package is missing or does not write the layout, or the checkpoint is not 2:4.
    """
    check_folder(folder, output, overwrite=overwrite)
    check_package()
    found = read_sparse_checkpoint(folder)
    if found.checkpoint.values.get("pruned"):
        raise RuntimeFormatError(
            f"The widths of {folder} differ between layers, which vLLM does not support. transformers loads the folder "
            "as it is."
        )
    return write_sparse_folder(
        found, output, lambda files, folder: _write_tensors(found, files, folder), overwrite=overwrite
    )


def check_package() -> None:
    """Make sure that the installed compressed-tensors writes 2:4 weights.

    Raises:
        RuntimeFormatError: it is not installed, or its version does not write them.
    """
    compressors = require(f"{_MODULE}.compressors", f'"{REQUIREMENT}"', "Writing compressed-tensors")
    if not hasattr(compressors, "Sparse24BitMaskCompressor"):
        raise RuntimeFormatError(
            f"compressed-tensors {version('compressed-tensors')} does not write 2:4 weights, but versions 0.9 to 0.14 "
            f'do: pip install "{REQUIREMENT}"'
        )


def _write_tensors(found: SparseCheckpoint, files: Mapping[Path, list[str]], output: Path) -> None:
    from safetensors.torch import save_file

    compressors: Any = require(f"{_MODULE}.compressors", "compressed-tensors", "Writing compressed-tensors")
    config = _sparsity_config(found)
    compressor = compressors.Sparse24BitMaskCompressor(config=config)
    places: dict[str, str] = {}
    zeros = weights = size = 0
    for file, names in files.items():
        tensors = {name: _without_negative_zeros(found.checkpoint.load(name)) for name in names}
        zeros += sum(int(tensor.eq(0).sum()) for tensor in tensors.values())
        weights += sum(tensor.numel() for tensor in tensors.values())
        tensors = compressor.compress(tensors, compression_targets=set(found.sparse))
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, output / file.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (output / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    config.global_sparsity = zeros / weights
    compressors.ModelCompressor(sparsity_config=config).update_config(str(output))


def _without_negative_zeros(tensor: Tensor) -> Tensor:
    """Turn -0.0 into 0.0, because some kernels of vLLM treat -0.0 as a kept weight."""
    return tensor + 0.0 if tensor.is_floating_point() else tensor


def _sparsity_config(found: SparseCheckpoint) -> Any:
    """Return the package's config for ``config.json``.

    If a target is a class, vLLM treats all its layers as sparse, even those in ``ignore``. So if only some layers are
    sparse, each of them is named.
    """
    configs: Any = require(f"{_MODULE}.config", "compressed-tensors", "Writing compressed-tensors")
    ignored = [*found.dense, *([found.head] if found.head is not None else [])]
    targets = list(found.sparse) if found.dense else ["Linear"]
    return configs.Sparse24BitMaskConfig(targets=targets, ignore=ignored)
