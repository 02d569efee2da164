"""Write a checkpoint as a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraprune.checkpoint.exports.appearing import appearing_files, check_free
from loraprune.checkpoint.exports.checkpoint import read_checkpoint, require
from loraprune.checkpoint.exports.gguf.content import gguf_content
from loraprune.checkpoint.exports.gguf.writer import write_content


@dataclass(frozen=True, kw_only=True)
class GgufResult:
    """What was written.

    Attributes:
        file: where.
        size: of the file, in bytes.
        architecture: llama.cpp's name of it.
        tokenizer: llama.cpp's names of the kind of tokenizer and of its way to cut text.
        notes: what the user should know about the file.
    """

    file: Path
    size: int
    architecture: str
    tokenizer: tuple[str, str]
    notes: tuple[str, ...]


def write_gguf(
    folder: Path,
    output: Path,
    *,
    outtype: str = "f16",
    pre_tokenizer: str | None = None,
    overwrite: bool = False,
) -> GgufResult:
    """Write a checkpoint as a GGUF file.

    Args:
        folder: with ``config.json``, safetensors and ``tokenizer.json``.
        output: file to make; it appears complete or not at all.
        outtype: of the matrices: ``f16``, ``f32`` or ``q8_0`` (8 bits, with a scale for every 32 numbers).
        pre_tokenizer: llama.cpp's way to cut text, where it has none that equals the tokenizer's.
        overwrite: replace an existing file.

    Raises:
        RuntimeFormatError: the checkpoint cannot be written; nothing has been.
    """
    check_free(output, overwrite=overwrite, holds=b"GGUF")
    require("gguf", "gguf", "Writing GGUF")
    checkpoint = read_checkpoint(folder)
    content = gguf_content(checkpoint, outtype, pre_tokenizer)
    with appearing_files(output) as temporary:
        write_content(temporary, checkpoint, content)
    merging = content.tokenizer.merging
    return GgufResult(
        file=output,
        size=output.stat().st_size,
        architecture=content.architecture.name,
        tokenizer=(merging.model, merging.pre),
        notes=content.notes,
    )
