"""Checkpoints with 2:4-sparse linear layers, and the files that an export copies from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from loraprune.checkpoint.exports.checkpoint import Checkpoint, RuntimeFormatError, read_checkpoint
from loraprune.checkpoint.exports.two_four import is_two_four
from loraprune.checkpoint.finite import check_finite_tensors
from loraprune.checkpoint.load import load_config, meta_model
from loraprune.checkpoint.reading import reading
from loraprune.checkpoint.save import check_disk_space
from loraprune.record.appearing import appearing_folder
from loraprune.record.checksums import renew
from loraprune.record.replaceable import check_output
from loraprune.record.run_record import RECORD_FILE

HOW_TO_MAKE_ONE = "`loraprune oneshot MODEL --criterion wanda --sparsity 2:4 --data … -o OUT` makes one that is"

_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
_INDEX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class SparseCheckpoint:
    """A checkpoint and its linear layers, by name.

    Attributes:
        checkpoint: the checkpoint.
        sparse: layers whose weight is 2:4.
        dense: layers whose weight is not 2:4.
        head: layer that computes a language model's logits; it is in neither list. None if there is none.
    """

    checkpoint: Checkpoint
    sparse: tuple[str, ...]
    dense: tuple[str, ...]
    head: str | None

    def tensors_by_file(self) -> Mapping[Path, list[str]]:
        """Return the names of the stored tensors, by file."""
        files: dict[Path, list[str]] = {}
        for name, stored in self.checkpoint.tensors.items():
            files.setdefault(stored.file, []).append(name)
        return files

    def check_finite(self) -> None:
        """Make sure that all stored tensors are finite, with one in memory at a time.

        Raises:
            NonFiniteWeightsError: a tensor is not.
        """
        check_finite_tensors((name, self.checkpoint.load(name)) for name in self.checkpoint.tensors)


@dataclass(frozen=True, kw_only=True)
class SparseFolderResult:
    """A written folder.

    Attributes:
        folder: path of the folder.
        size: size of its weight files in bytes.
        size_before: size of the plain checkpoint's weight files in bytes.
        sparse: number of layers stored as 2:4.
        dense: linear layers that are not 2:4 and are stored unchanged, without the head.
    """

    folder: Path
    size: int
    size_before: int
    sparse: int
    dense: tuple[str, ...]


def read_sparse_checkpoint(folder: Path) -> SparseCheckpoint:
    """Find the 2:4 layers of a checkpoint, with one weight in memory at a time.

    Raises:
        RuntimeFormatError: it is not a plain checkpoint, or none of its linear layers is 2:4.
    """
    checkpoint = read_checkpoint(folder)
    model = empty_model(folder)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = next((name for name, module in linear.items() if module is output), None)
    names = [name for name in linear if name != head and weight_of(name) in checkpoint.tensors]
    if not names:
        raise RuntimeFormatError(
            f"{folder} has no nn.Linear in its blocks: {type(model).__name__} has other layers, which the 2:4 formats "
            "do not support. transformers loads the folder as it is."
        )
    sparse = tuple(name for name in names if is_two_four(checkpoint.load(weight_of(name))))
    if not sparse:
        raise RuntimeFormatError(
            f"None of the {len(names)} linear layers of {folder} is 2:4-sparse; {HOW_TO_MAKE_ONE}."
        )
    dense = tuple(name for name in names if name not in set(sparse))
    return SparseCheckpoint(checkpoint=checkpoint, sparse=sparse, dense=dense, head=head)


def weight_of(layer: str) -> str:
    """Return the name of a layer's weight."""
    return f"{layer}.weight"


def empty_model(folder: Path) -> PreTrainedModel:
    """Make the model of a folder on the meta device, without weights.

    Raises:
        RuntimeFormatError: transformers does not load it.
    """
    try:
        config = load_config(str(folder), described=False)
        with reading(f"No model can be made from the config of {folder}", "Correct its config.json.", config.to_dict()):
            return meta_model(config)
    except ValueError as error:
        raise RuntimeFormatError(f"transformers does not load {folder}: {str(error).splitlines()[0]}") from error


def check_folder(folder: Path, output: Path, *, overwrite: bool) -> None:
    """Make sure that a folder of another format may be written.

    Raises:
        RuntimeFormatError: it would replace the checkpoint.
        OutputExistsError: it is not empty, and ``overwrite`` is off; or it is a file.
    """
    if folder.resolve().is_relative_to(output.resolve()):
        raise RuntimeFormatError(f"{output} would replace the checkpoint itself; name another folder with -o.")
    check_output(output, overwrite=overwrite, inputs=(folder,))


def write_sparse_folder(
    found: SparseCheckpoint,
    output: Path,
    write: Callable[[Mapping[Path, list[str]], Path], None],
    *,
    overwrite: bool = False,
) -> SparseFolderResult:
    """Write a folder of another format. It appears complete or not at all.

    Args:
        found: the checkpoint.
        output: folder to write.
        write: function that writes the tensors into a folder; it gets their names by file, and the folder.
        overwrite: replace an existing result.

    Raises:
        NonFiniteWeightsError: a number is NaN or infinite; nothing is written.
    """
    files = found.tensors_by_file()
    size_before = sum(path.stat().st_size for path in files)
    check_disk_space(output, size_before)
    found.check_finite()
    with appearing_folder(output, overwrite=overwrite) as temporary:
        copy_companions(found.checkpoint.folder, temporary)
        write(files, temporary)
        renew(temporary / RECORD_FILE)
        size = sum(path.stat().st_size for path in temporary.glob("*.safetensors"))
    return SparseFolderResult(
        folder=output, size=size, size_before=size_before, sparse=len(found.sparse), dense=found.dense
    )


def copy_companions(folder: Path, output: Path) -> None:
    """Copy the files of a checkpoint other than its weights: config, tokenizer, code, license."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern)}
    for path in sorted(found):
        if path.is_file() and not path.name.endswith(_INDEX):
            shutil.copyfile(path, output / path.name)
