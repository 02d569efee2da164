"""A checkpoint whose linear layers are 2:4-sparse, and what a folder of another format takes over from it."""

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
        checkpoint: the folder.
        sparse: layers whose weight is 2:4.
        dense: layers whose weight is not.
        head: the layer that makes the logits of a language model, which is in neither; None if there is none.
    """

    checkpoint: Checkpoint
    sparse: tuple[str, ...]
    dense: tuple[str, ...]
    head: str | None

    def tensors_by_file(self) -> Mapping[Path, list[str]]:
        """Names of the stored tensors, by the file that holds them."""
        files: dict[Path, list[str]] = {}
        for name, stored in self.checkpoint.tensors.items():
            files.setdefault(stored.file, []).append(name)
        return files

    def check_finite(self) -> None:
        """Make sure that all stored tensors are finite, one in memory at a time.

        Raises:
            NonFiniteWeightsError: one is not.
        """
        check_finite_tensors((name, self.checkpoint.load(name)) for name in self.checkpoint.tensors)


@dataclass(frozen=True, kw_only=True)
class SparseFolderResult:
    """What was written.

    Attributes:
        folder: where.
        size: of the tensors, in bytes.
        size_before: of the tensors of the plain checkpoint.
        sparse: number of layers that are stored as 2:4.
        dense: linear layers that are not 2:4, and stored as they are; the head is not among them.
    """

    folder: Path
    size: int
    size_before: int
    sparse: int
    dense: tuple[str, ...]


def read_sparse_checkpoint(folder: Path) -> SparseCheckpoint:
    """Find the 2:4 layers of a checkpoint; reads one weight at a time.

    Raises:
        RuntimeFormatError: it is no plain checkpoint, or none of its linear layers is 2:4.
    """
    checkpoint = read_checkpoint(folder)
    model = empty_model(folder)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = next((name for name, module in linear.items() if module is output), None)
    names = [name for name in linear if name != head and weight_of(name) in checkpoint.tensors]
    if not names:
        raise RuntimeFormatError(
            f"{folder} has no nn.Linear in its blocks: {type(model).__name__} keeps its matrices in layers of another "
            "kind, which the 2:4 formats do not know. transformers loads the folder as it is."
        )
    sparse = tuple(name for name in names if is_two_four(checkpoint.load(weight_of(name))))
    if not sparse:
        raise RuntimeFormatError(
            f"None of the {len(names)} linear layers of {folder} is 2:4-sparse; {HOW_TO_MAKE_ONE}."
        )
    dense = tuple(name for name in names if name not in set(sparse))
    return SparseCheckpoint(checkpoint=checkpoint, sparse=sparse, dense=dense, head=head)


def weight_of(layer: str) -> str:
    """Name of a layer's weight."""
    return f"{layer}.weight"


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of a folder without its weights.

    Raises:
        RuntimeFormatError: transformers does not know it.
    """
    try:
        config = load_config(str(folder), described=False)
        with reading(f"No model can be made of the config of {folder}", "Correct its config.json.", config.to_dict()):
            return meta_model(config)
    except ValueError as error:
        raise RuntimeFormatError(f"transformers does not load {folder}: {str(error).splitlines()[0]}") from error


def check_folder(folder: Path, output: Path, *, overwrite: bool) -> None:
    """Make sure that a folder of another format may be written.

    Raises:
        RuntimeFormatError: it would take the place of the checkpoint.
        OutputExistsError: it holds something, and ``overwrite`` is off; or it is a file.
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
    """Make a folder of another format, which appears complete or not at all.

    Args:
        found: the checkpoint.
        output: folder to make.
        write: writes the tensors into a folder; it is given their names by the file that holds them.
        overwrite: replace a result that is there.

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
    """Copy what belongs to a checkpoint beside its weights: config, tokenizer, own code, license."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern)}
    for path in sorted(found):
        if path.is_file() and not path.name.endswith(_INDEX):
            shutil.copyfile(path, output / path.name)
