"""Conversion of quantized checkpoints and GGUF files to ordinary 16-bit checkpoints, which can be pruned and tuned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.packed_numbers import (
    awq_weight,
    gptq_weight,
    pack_quantized_weight,
    scaled_weight,
)
from loraprune.checkpoint.exports.sparse_checkpoint import copy_companions
from loraprune.checkpoint.finite import check_finite_tensors
from loraprune.checkpoint.load import DTYPES
from loraprune.checkpoint.pruned_class import rebuilt
from loraprune.checkpoint.reading import MODEL_CONFIG, gguf_file_of, read_config_values, reading
from loraprune.checkpoint.save import check_disk_space, save_checkpoint
from loraprune.checkpoint.weight_files import INDEX, StoredTensor, stored_tensors, weight_files
from loraprune.record.appearing import appearing_folder
from loraprune.record.replaceable import check_output

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 4_000_000_000
"""Approximate size of a weight file, in bytes."""

_SAYS_QUANTIZED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that make other tools treat a folder as a quantized checkpoint."""

_PACKED = ("qweight", "weight_packed")
_BESIDE = (
    *("qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape"),
    *("weight_g_idx", "input_scale", "input_zero_point", "input_global_scale", "output_scale", "activation_scale"),
    *("k_scale", "v_scale", "q_scale"),
)
"""Tensors stored with a quantized weight, or for quantized inputs."""


@dataclass(frozen=True, kw_only=True)
class PlainCopyResult:
    """A written copy.

    Attributes:
        folder: folder of the copy.
        kind: quantization method or format of the source, such as ``"gptq"`` or ``"gguf"``.
        size: size of its weights in bytes.
        dtype: torch's name of the dtype of its weights.
    """

    folder: Path
    kind: str
    size: int
    dtype: str


def write_plain_copy(source: Path, output: Path, *, overwrite: bool = False) -> PlainCopyResult:
    """Write a quantized checkpoint or a GGUF file as an ordinary checkpoint.

    A quantized checkpoint is converted tensor by tensor, with the memory of one weight file. A GGUF file is loaded
    whole. The copy keeps the error of the quantization.

    Args:
        source: folder of a checkpoint quantized with GPTQ, AWQ, FP8 or compressed-tensors; or a GGUF file, or a folder
            that holds one GGUF file and no other model.
        output: folder to write; it appears complete or not at all.
        overwrite: replace an existing result.

    Raises:
        CheckpointError: the source cannot be read.
        RuntimeFormatError: the source is not quantized, or with an unknown method.
        NonFiniteWeightsError: a weight is NaN or infinite.
    """
    if source.resolve().is_relative_to(output.resolve()):
        raise RuntimeFormatError(f"{output} would replace {source}; name another folder with -o.")
    check_output(output, overwrite=overwrite, inputs=(source,))
    file = gguf_file_of(source)
    return _of_gguf(file, output, overwrite) if file is not None else _of_quantized(source, output, overwrite)


def _of_gguf(file: Path, output: Path, overwrite: bool) -> PlainCopyResult:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    remedy = "Name a checkpoint in safetensors, or a GGUF file of a family that transformers reads."
    with reading(f"{file} cannot be read as GGUF", remedy):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
    check_disk_space(output, model.num_parameters() * torch.float16.itemsize)
    model.config.dtype = torch.float16
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # transformers treats a model read from GGUF as quantized and does not save it.
    model = rebuilt(model, type(model), model.config)
    card = f"# {file.stem}\n\nMade from `{file.name}` by `loraprune export --format safetensors`.\n"
    save_checkpoint(output, model, tokenizer, card=card, overwrite=overwrite)
    return PlainCopyResult(folder=output, kind="gguf", size=_size(output), dtype="float16")


def _of_quantized(source: Path, output: Path, overwrite: bool) -> PlainCopyResult:
    values = read_config_values(source / MODEL_CONFIG)
    found = [values.pop(key, None) for key in ("quantization_config", "compression_config")]
    settings = found[0] or found[1]
    if not settings:
        raise RuntimeFormatError(f"{source} is not quantized. It is already an ordinary checkpoint.")
    layers = _Layers(stored_tensors(weight_files(source)), settings)
    name = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    dtype = DTYPES.get(name, torch.bfloat16)
    check_disk_space(output, layers.count * dtype.itemsize)
    values.pop("torch_dtype", None)
    values["dtype"] = str(dtype).removeprefix("torch.")
    with appearing_folder(output, overwrite=overwrite) as folder:
        copy_companions(source, folder)
        for name in _SAYS_QUANTIZED:
            (folder / name).unlink(missing_ok=True)
        (folder / MODEL_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        _write_shards(layers.plain(dtype), folder)
        size = _size(folder)
    return PlainCopyResult(folder=output, kind=layers.method, size=size, dtype=values["dtype"])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write tensors into files of about :data:`SHARD` bytes, with an index if there are several files."""
    from safetensors.torch import save_file

    place: dict[str, int] = {}
    held: dict[str, Tensor] = {}
    total, count = 0, 0

    def flush() -> None:
        nonlocal held, count
        count += 1
        save_file(held, folder / f"part-{count}.safetensors", metadata={"format": "pt"})
        place.update(dict.fromkeys(held, count))
        held = {}

    for name, tensor in tensors:
        check_finite_tensors([(name, tensor)])
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > SHARD:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    names = {number: f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    if count == 1:
        names = {1: "model.safetensors"}
    else:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[at] for name, at in place.items()}}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for number, name in names.items():
        (folder / f"part-{number}.safetensors").rename(folder / name)


class _Layers:
    """The stored tensors of a quantized checkpoint, by layer.

    Args:
        stored: tensors by name.
        settings: quantization settings in the config.

    Attributes:
        method: quantization method.

    Raises:
        RuntimeFormatError: the quantization method or format is unknown.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> None:
        self.method = str(settings.get("quant_method", "unknown"))
        self._stored, self._settings = stored, settings
        self._parts: dict[str, set[str]] = {}
        for name in stored:
            layer, _, part = name.rpartition(".")
            self._parts.setdefault(layer, set()).add(part)
        self._check()

    def _check(self) -> None:
        bits, version = self._bits, str(self._settings.get("version", "gemm")).lower()
        packs = any(part in parts for parts in self._parts.values() for part in _PACKED)
        known = {
            "gptq": bits in (2, 4, 8),
            "awq": bits == 4 and version == "gemm",
            "fp8": True,
            "fbgemm_fp8": True,
            "compressed-tensors": self._settings.get("format")
            in ("pack-quantized", "float-quantized", "int-quantized", "naive-quantized")
            and (self._settings.get("sparsity_config") or {}).get("format", "dense") == "dense"
            and (not packs or bits in (4, 8)),
        }
        if not known.get(self.method, False):
            detail = f" ({bits} bits)" if bits else ""
            form = self._settings.get("format")
            raise RuntimeFormatError(
                f"loraprune cannot make a 16-bit copy of a checkpoint quantized with {self.method}"
                f"{f', format {form}' if form else ''}{detail}. Name the original checkpoint."
            )

    @property
    def _bits(self) -> int:
        if self.method != "compressed-tensors":
            return int(self._settings.get("bits") or 0)
        groups = self._settings.get("config_groups") or {}
        widths = {int((group.get("weights") or {}).get("num_bits") or 0) for group in groups.values()}
        return widths.pop() if len(widths) == 1 else 0

    @property
    def _block(self) -> Sequence[int] | None:
        """Outputs and inputs that share a scale, from the config."""
        weights = [group.get("weights") or {} for group in (self._settings.get("config_groups") or {}).values()]
        blocks = [self._settings.get("weight_block_size"), *(each.get("block_structure") for each in weights)]
        return next((block for block in blocks if block), None)

    @property
    def count(self) -> int:
        """Number of parameters in the copy."""
        factors = dict.fromkeys(_PACKED, 32 // self._bits if self._bits else 1)
        found = 0
        for name, stored in self._stored.items():
            part = name.rpartition(".")[2]
            if part not in _BESIDE:
                found += torch.Size(stored.shape).numel() * factors.get(part, 1)
        return found

    def plain(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors of the plain model, in the order of the files."""
        from safetensors import safe_open

        with ExitStack() as stack:
            files = {
                path: stack.enter_context(safe_open(path, framework="pt"))
                for path in dict.fromkeys(stored.file for stored in self._stored.values())
            }

            def read(layer: str, part: str) -> Tensor | None:
                name = f"{layer}.{part}" if layer else part
                stored = self._stored.get(name)
                return None if stored is None else files[stored.file].get_tensor(name)

            for layer, parts in self._parts.items():
                beside = parts & {*_PACKED, *_BESIDE}
                needed = beside | (parts & {"weight"}) if beside else ()
                quantized = self._weight({part: read(layer, part) for part in needed})
                if quantized is not None:
                    yield f"{layer}.weight", quantized.to(dtype)
                for part in sorted(parts - {*_PACKED, *_BESIDE}):
                    if part != "weight" or quantized is None:
                        tensor = read(layer, part)
                        assert tensor is not None
                        name = f"{layer}.{part}" if layer else part
                        yield name, _cast(name, tensor, dtype)

    def _weight(self, given: Mapping[str, Tensor | None]) -> Tensor | None:
        """Return the weight of a quantized layer in 32 bits; None if the layer is not quantized."""
        part: dict[str, Tensor] = {name: tensor for name, tensor in given.items() if tensor is not None}
        if "qweight" in part and self.method == "awq":
            return awq_weight(part["qweight"], part["qzeros"], part["scales"])
        if "qweight" in part:
            return gptq_weight(
                *(part["qweight"], part["qzeros"], part["scales"], part.get("g_idx")),
                bits=self._bits,
                zeros_off_by_one=self._settings.get("checkpoint_format", "gptq") != "gptq_v2",
            )
        if "weight_packed" in part:
            return pack_quantized_weight(
                *(part["weight_packed"], part["weight_scale"], part.get("weight_zero_point"), part.get("weight_g_idx")),
                bits=self._bits,
                inputs=int(part["weight_shape"][1]),
            )
        scales = part.get("weight_scale_inv", part.get("weight_scale"))
        if scales is None or "weight" not in part:
            return None
        return scaled_weight(part["weight"], scales, part.get("weight_zero_point"), block=self._block)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast an unquantized floating-point tensor to the dtype of the copy; return others unchanged.

    Raises:
        RuntimeFormatError: the tensor is in 8 bits, so its scale has an unknown name.
    """
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        raise RuntimeFormatError(
            f"{name} is in 8 bits and has no known scale, so loraprune cannot make a 16-bit copy. Name the original "
            "checkpoint."
        )
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
