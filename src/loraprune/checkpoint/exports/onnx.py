"""Export of a checkpoint to an ONNX file, and comparison of onnxruntime's logits with torch's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loraprune.checkpoint.exports.appearing import appearing_files, check_free
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, read_checkpoint, require
from loraprune.checkpoint.finite import check_finite
from loraprune.checkpoint.load import load_model

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram
    from transformers import PretrainedConfig, PreTrainedModel

_TOLERANCE = 1e-3
"""Largest difference that counts as rounding, relative to the largest logit."""


@dataclass(frozen=True, kw_only=True)
class OnnxResult:
    """A written ONNX file.

    Attributes:
        file: path of the file.
        size: size in bytes, including the separate tensor file of a large model.
        model_class: model class in the transformers library.
        inputs: names and shapes of the inputs; a word stands for a dynamic length.
        difference: largest difference between the logits of onnxruntime and torch; None if it was not checked.
    """

    file: Path
    size: int
    model_class: str
    inputs: Mapping[str, tuple[str | int, ...]]
    difference: float | None


class _Logits(nn.Module):
    """A model as a function from its inputs, in order, to its logits."""

    def __init__(self, model: PreTrainedModel, inputs: OnnxInputs) -> None:
        super().__init__()
        self.model, self._names, self._options = model, tuple(inputs.traced), inputs.options

    def forward(self, *tensors: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self._names, tensors, strict=True)), **self._options).logits
        return logits


def write_onnx(folder: Path, output: Path, *, overwrite: bool = False) -> OnnxResult:
    """Write a language model or an image classifier as an ONNX file, in 32 bits.

    Args:
        folder: a checkpoint that transformers loads, with this package imported also a ragged one.
        output: file to write; it appears complete or not at all.
        overwrite: replace an existing file.

    Raises:
        CheckpointError: the weights cannot be loaded.
        RuntimeFormatError: the checkpoint cannot be written, or onnxruntime computes other logits. No file appears.
    """
    check_free(output, overwrite=overwrite, holds=b"pytorch")
    for package in ("onnx", "onnxscript"):
        require(package, package, "Writing ONNX")
    checkpoint = read_checkpoint(folder)
    model_class = str((checkpoint.values.get("architectures") or ["?"])[0])
    auto_class = loader_of(model_class)
    model = load_model(str(folder), torch.float32, torch.device("cpu"), auto_class=auto_class).eval()
    check_finite(model)
    inputs = inputs_for(model_class, model.config)
    logits = _Logits(model, inputs).eval()
    program = _export(logits, inputs)
    with appearing_files(output) as temporary:
        program.save(temporary)
        difference = _difference(logits, inputs, temporary)
        size = sum(path.stat().st_size for path in temporary.parent.iterdir())
    return OnnxResult(file=output, size=size, model_class=model_class, inputs=inputs.shapes(), difference=difference)


def _export(logits: nn.Module, inputs: OnnxInputs) -> ONNXProgram:
    with _quiet():
        try:
            program = torch.onnx.export(
                logits,
                tuple(inputs.traced.values()),
                dynamo=True,
                dynamic_shapes=(tuple(inputs.axes[name] for name in inputs.traced),),
                input_names=list(inputs.traced),
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise RuntimeFormatError(f"torch cannot write this model as ONNX: {reason}") from error
    assert program is not None
    # The exporter stores paths of this machine's source files in the nodes.
    for graph in (program.model.graph, *program.model.functions.values()):
        for node in graph:
            node.metadata_props.clear()
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(logits: nn.Module, inputs: OnnxInputs, path: Path) -> float | None:
    if find_spec("onnxruntime") is None:
        return None
    onnxruntime = require("onnxruntime", "onnxruntime", "Checking ONNX")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.checked.items()}
    found = torch.from_numpy(session.run(["logits"], feed)[0])[inputs.compared]
    with torch.no_grad():
        expected = logits(*inputs.checked.values())[inputs.compared]
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE * float(expected.abs().max()):
        raise RuntimeFormatError(
            f"onnxruntime computes other logits than torch (they differ by up to {difference:.2g}), so the file is not "
            "kept. transformers loads the folder as it is."
        )
    return difference


_LANGUAGE = ("ForCausalLM", "LMHeadModel")
_IMAGES = ("ForImageClassification",)


@dataclass(frozen=True, kw_only=True)
class OnnxInputs:
    """Example inputs of a model, in the order of its arguments.

    Attributes:
        traced: example inputs for the export.
        checked: example inputs of other lengths, for the comparison.
        axes: names of the dynamic lengths, by input and axis.
        compared: index of the logits to compare.
        options: other arguments of the model, the same in every call.
    """

    traced: dict[str, Tensor]
    checked: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    compared: Tensor | slice
    options: dict[str, Any] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[str | int, ...]]:
        """Return the shapes of the inputs; a word stands for a dynamic length."""
        return {
            name: tuple(self.axes[name].get(axis, length) for axis, length in enumerate(tensor.shape))
            for name, tensor in self.traced.items()
        }


def loader_of(model_class: str) -> str:
    """Return the auto class that loads a model class.

    Raises:
        RuntimeFormatError: loraprune does not write this kind of model as ONNX.
    """
    if model_class.endswith(_LANGUAGE):
        return "AutoModelForCausalLM"
    if model_class.endswith(_IMAGES):
        return "AutoModelForImageClassification"
    raise RuntimeFormatError(
        f"loraprune cannot write a {model_class} as ONNX; it writes causal language models and image classifiers. "
        "transformers loads the folder as it is."
    )


def inputs_for(model_class: str, config: PretrainedConfig) -> OnnxInputs:
    """Return example inputs for a model class that :func:`loader_of` knows."""
    generator = torch.Generator().manual_seed(0)
    return (_images if model_class.endswith(_IMAGES) else _texts)(config, generator)


def _images(config: PretrainedConfig, generator: torch.Generator) -> OnnxInputs:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size

    def batch(count: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(count, config.num_channels, height, width, generator=generator)}

    return OnnxInputs(traced=batch(2), checked=batch(3), axes={"pixel_values": {0: "batch"}}, compared=slice(None))


def _texts(config: PretrainedConfig, generator: torch.Generator) -> OnnxInputs:
    def batch(count: int, length: int, padding: int) -> dict[str, Tensor]:
        ids = torch.randint(config.vocab_size, (count, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        return {"input_ids": ids, "attention_mask": mask}

    checked = batch(3, 11, padding=2)
    lengths = {0: "batch", 1: "sequence"}
    return OnnxInputs(
        traced=batch(2, 7, padding=1),
        checked=checked,
        axes={"input_ids": lengths, "attention_mask": lengths},
        compared=checked["attention_mask"].bool(),  # logits at padding positions are meaningless
        options={"use_cache": False},
    )
