"""2:4 checkpoints in the layout of the compressed-tensors package, which earlier versions of vLLM read."""

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
"""Versions that write 2:4 weights and leave the choice of transformers to others. 0.9 to 0.14 write them; 0.14 wants an
older transformers than this package, and 0.15 removed it."""

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
            f"{folder} has other widths in some layers than in others, which vLLM does not read. transformers loads it "
            "as it is."
        )
    return write_sparse_folder(
        found, output, lambda files, folder: _write_tensors(found, files, folder), overwrite=overwrite
    )


def check_package() -> None:
    """Make sure that the installed compressed-tensors writes 2:4 weights.

    Raises:
        RuntimeFormatError: it is not installed, or of a version that does not.
    """
    compressors = require(f"{_MODULE}.compressors", f'"{REQUIREMENT}"', "Writing compressed-tensors")
    if not hasattr(compressors, "Sparse24BitMaskCompressor"):
        raise RuntimeFormatError(
            f"compressed-tensors {version('compressed-tensors')} does not write 2:4 weights; the versions 0.9 to 0.14 "
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
    """The same numbers; some kernels of vLLM take -0.0 for a kept weight."""
    return tensor + 0.0 if tensor.is_floating_point() else tensor


def _sparsity_config(found: SparseCheckpoint) -> Any:
    """What the package says of the layers in ``config.json``.

    vLLM takes a layer that a class among the targets matches for sparse even if it is to be ignored, so that layers are
    named one by one where only some are sparse.
    """
    configs: Any = require(f"{_MODULE}.config", "compressed-tensors", "Writing compressed-tensors")
    ignored = [*found.dense, *([found.head] if found.head is not None else [])]
    targets = list(found.sparse) if found.dense else ["Linear"]
    return configs.Sparse24BitMaskConfig(targets=targets, ignore=ignored)
