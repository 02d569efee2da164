"""What a model is fed with while it is written as ONNX, and while the file is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraprune.checkpoint.exports.errors import RuntimeFormatError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LANGUAGE = ("ForCausalLM", "LMHeadModel")
_IMAGES = ("ForImageClassification",)


@dataclass(frozen=True, kw_only=True)
class OnnxInputs:
    """Examples for a model, all in the order of its arguments.

    Attributes:
        traced: example to write the model with.
        checked: example of other lengths, to compare on.
        axes: names of the lengths that may change, by input and axis.
        compared: index of the logits that mean something.
        options: further arguments of the model, the same in every call.
    """

    traced: dict[str, Tensor]
    checked: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    compared: Tensor | slice
    options: dict[str, Any] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the inputs; a word stands for a length that may change."""
        return {
            name: tuple(self.axes[name].get(axis, length) for axis, length in enumerate(tensor.shape))
            for name, tensor in self.traced.items()
        }


def loader_of(model_class: str) -> str:
    """Name of the class of transformers that loads a model.

    Raises:
        RuntimeFormatError: it is of a kind that is not written as ONNX.
    """
    if model_class.endswith(_LANGUAGE):
        return "AutoModelForCausalLM"
    if model_class.endswith(_IMAGES):
        return "AutoModelForImageClassification"
    raise RuntimeFormatError(
        f"A model of the class {model_class} cannot be written as ONNX here; causal language models and image "
        "classifiers can. transformers loads the folder as it is."
    )


def inputs_for(model_class: str, config: PretrainedConfig) -> OnnxInputs:
    """Examples for a model of a class that :func:`loader_of` knows."""
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
        compared=checked["attention_mask"].bool(),  # what a padding position computes means nothing
        options={"use_cache": False},
    )
