"""Bytes of a GGUF file, one tensor in memory at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import Checkpoint, RuntimeFormatError
from loraprune.checkpoint.exports.gguf.content import GgufContent, stored_type
from loraprune.checkpoint.exports.gguf.tokenizer import GgufTokenizer
from loraprune.checkpoint.finite import check_finite_tensors
from loraprune.checkpoint.save import check_disk_space

if TYPE_CHECKING:
    import numpy as np

_ROTARY = "rope_freqs.weight"


def write_content(path: Path, checkpoint: Checkpoint, content: GgufContent) -> None:
    """Write a file.

    Raises:
        RuntimeFormatError: a number does not fit into 16 bits.
        OSError: there is too little space.
        NonFiniteWeightsError: a number is NaN or infinite.
    """
    import gguf

    types = {
        "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    }
    writer = gguf.GGUFWriter(path, content.architecture.name)
    try:
        writer.add_name(content.name)
        writer.add_file_type(types[content.outtype][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in content.metadata.items():
            _add_number(writer, key, value)
        _add_tokenizer(writer, content.tokenizer)
        shapes = {tensor.name: tensor.shape for tensor in content.tensors}
        if content.divisors is not None:
            shapes = {_ROTARY: tuple(content.divisors.shape), **shapes}
        sizes = [
            _announce(writer, name, shape, types[stored_type(content.outtype, shape)][0])
            for name, shape in shapes.items()
        ]
        check_disk_space(path.parent, sum(sizes))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if content.divisors is not None:
            writer.write_tensor_data(content.divisors.numpy())
        for tensor in content.tensors:
            weight = checkpoint.load(tensor.source)
            check_finite_tensors([(tensor.source, weight)])
            values = tensor.convert(weight).float().contiguous().numpy()
            writer.write_tensor_data(_stored(values, tensor.source, stored_type(content.outtype, tensor.shape)))
    finally:
        writer.close()


def _add_number(writer: Any, key: str, value: int | float | list[int]) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    merging = tokenizer.merging
    writer.add_tokenizer_model(merging.model)
    writer.add_tokenizer_pre(merging.pre)
    writer.add_token_list(tokenizer.vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in tokenizer.vocabulary.types])
    if merging.scores:
        writer.add_token_scores(merging.scores)
    if merging.merges:
        writer.add_token_merges([" ".join(merge) for merge in merging.merges])
    for role, number in tokenizer.special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    writer.add_add_space_prefix(merging.add_space_prefix)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> int:
    """Enter a tensor that is written later; returns its bytes."""
    import gguf
    import numpy as np

    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    count: int = math.prod(shape) // numbers * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=kind)
    return count


def _stored(values: np.ndarray, source: str, kind: str) -> np.ndarray:
    """The numbers of a tensor, in 32 bits, as the file holds them."""
    import gguf
    import numpy as np

    if kind == "f32":
        return values
    if kind == "q8_0":
        return gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    largest = float(np.abs(values).max())
    if largest > float(np.finfo(np.float16).max):
        raise RuntimeFormatError(f"{source} holds {largest:.3g}, too large for 16 bits: pass --outtype f32.")
    return values.astype(np.float16)
