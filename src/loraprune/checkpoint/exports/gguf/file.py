"""Export of a checkpoint to a GGUF file, with one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.appearing import appearing_files, check_free
from loraprune.checkpoint.exports.checkpoint import Checkpoint, RuntimeFormatError, read_checkpoint, require
from loraprune.checkpoint.exports.gguf.architecture import (
    add_metadata,
    architecture_for,
    check_family,
    frequency_divisors,
    gguf_context,
)
from loraprune.checkpoint.exports.gguf.tensors import GgufTensor, gguf_tensors, interleave_halves
from loraprune.checkpoint.exports.gguf.tokenizer import add_tokenizer, chat_template_of, tokenizer_of_folder
from loraprune.checkpoint.finite import check_finite_tensors
from loraprune.checkpoint.save import check_disk_space

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

OUTTYPES = ("f16", "f32", "q8_0")


@dataclass(frozen=True, kw_only=True)
class GgufResult:
    """A written GGUF file.

    Attributes:
        file: path of the file.
        size: its size in bytes.
        architecture: llama.cpp's name of the architecture.
        tokenizer: llama.cpp's names of the tokenizer model and of the pre-tokenizer.
        has_chat_template: whether the file holds a chat template.
        notes: notes for the user about the file.
    """

    file: Path
    size: int
    architecture: str
    tokenizer: tuple[str, str]
    has_chat_template: bool
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
        folder: folder with ``config.json``, safetensors and ``tokenizer.json``.
        output: file to write; it appears complete or not at all.
        outtype: type of the matrices: ``f16``, ``f32`` or ``q8_0`` (8 bits, with a scale for every 32 numbers).
        pre_tokenizer: llama.cpp's pre-tokenizer to use if none equals the tokenizer's.
        overwrite: replace an existing file.

    Raises:
        RuntimeFormatError: the checkpoint cannot be written; no file appears.
        NonFiniteWeightsError: a number is NaN or infinite.
        OSError: the disk has too little space.
    """
    check_free(output, overwrite=overwrite, holds=b"GGUF")
    gguf = require("gguf", "gguf", "Writing GGUF")
    if outtype not in OUTTYPES:
        raise RuntimeFormatError(
            f"There is no outtype {outtype!r}; choose one of {', '.join(OUTTYPES)}. For another type, write f16 and "
            "convert that file with llama.cpp: llama-quantize IN.gguf OUT.gguf TYPE"
        )
    checkpoint = read_checkpoint(folder)
    check_family(checkpoint.model_type)
    config, widths = checkpoint.config(), checkpoint.widths()
    architecture = architecture_for(checkpoint.model_type, config, widths)
    tensors = gguf_tensors(architecture, config, widths, checkpoint.tensors)
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_name(folder.resolve().name)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if outtype == 'f32' else 'MOSTLY'}_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_metadata(writer, architecture, config, widths)
    tokenizer = tokenizer_of_folder(folder)
    model, pre, tokenizer_notes = add_tokenizer(writer, tokenizer, config, pre_tokenizer)
    divisors = frequency_divisors(config)
    with appearing_files(output) as temporary, closing(writer):
        notes = _write_tensors(writer, temporary, checkpoint, tensors, divisors=divisors, outtype=outtype)
    context = gguf_context(config)
    if context < config.max_position_embeddings:
        notes.append(f"the context is {context} tokens, up to which the sliding window covers the whole text")
    return GgufResult(
        file=output,
        size=output.stat().st_size,
        architecture=architecture.name,
        tokenizer=(model, pre),
        has_chat_template=bool(chat_template_of(tokenizer)),
        notes=(*notes, *tokenizer_notes),
    )


def _write_tensors(
    writer: Any,
    file: Path,
    checkpoint: Checkpoint,
    tensors: Sequence[GgufTensor],
    *,
    divisors: Tensor | None,
    outtype: str,
) -> list[str]:
    """Write the header and all tensors: vectors in 32 bits, matrices in ``outtype``. Return notes on the types."""
    import gguf
    import numpy as np

    shapes = {} if divisors is None else {"rope_freqs.weight": tuple(divisors.shape)}
    shapes |= {tensor.name: tensor.shape for tensor in tensors}
    kinds = {}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else outtype.upper()]
        kinds[name] = gguf.GGMLQuantizationType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kinds[name]))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    check_disk_space(file.parent, sum(info.nbytes for info in writer.tensors[0].values()))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors.numpy())
    for tensor in tensors:
        weight = checkpoint.load(tensor.source)
        check_finite_tensors([(tensor.source, weight)])
        values = interleave_halves(weight, tensor.interleaved_heads).float()
        writer.write_tensor_data(_stored(values.contiguous().numpy(), tensor.source, kinds[tensor.name]))
    wider = sum(kind.name == "F16" for kind in kinds.values()) if outtype == "q8_0" else 0
    return [f"{wider} matrices are in f16, because q8_0 needs rows of a multiple of 32"] if wider else []


def _stored(values: np.ndarray, source: str, kind: Any) -> np.ndarray:
    """Convert the 32-bit numbers of a tensor to the type in the file."""
    import gguf
    import numpy as np

    largest = float(np.abs(values).max())
    if kind == gguf.GGMLQuantizationType.F16 and largest > float(np.finfo(np.float16).max):
        raise RuntimeFormatError(f"{source} holds {largest:.3g}, which is too large for 16 bits. Pass --outtype f32.")
    return gguf.quantize(values, kind)
