"""Which runtimes load a result: what a user has to know before it is shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, block_widths
from loraprune.checkpoint.exports.gguf.architecture import architecture_for, check_family, gguf_head_dim
from loraprune.layers.quantized import is_quantized_model, unfit_for_cpu
from loraprune.structure.describe import describe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

VLLM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families of which the tests compare what a config says with what vLLM's stock class reads."""


def _stock_type(config: PretrainedConfig) -> str:
    pruned = getattr(config, "pruned", None)
    return str(pruned["base_model_type"] if pruned else config.model_type)


def _vllm_reads(config: PretrainedConfig) -> bool:
    if getattr(config, "pruned", None) or config.model_type not in VLLM_FAMILIES:
        return False
    # vLLM's Qwen2 divides the hidden size by the number of heads and does not read head_dim.
    return config.model_type != "qwen2" or gguf_head_dim(config) * config.num_attention_heads == config.hidden_size


def _gguf_architecture(config: PretrainedConfig) -> str | None:
    """The architecture of llama.cpp that takes a model, or None."""
    try:
        check_family(_stock_type(config))
        widths = block_widths(config.to_dict(), getattr(config, "pruned", None))
        return architecture_for(_stock_type(config), config, widths).name
    except RuntimeFormatError:
        return None


def _package(model: PreTrainedModel) -> str:
    """The package that reads the weights of a quantized model."""
    method = model.config.quantization_config.quant_method
    return str(getattr(method, "value", method))


def _unfit(model: PreTrainedModel) -> str:
    """A warning where bitsandbytes fails on a CPU, or computes something else there; empty where it does not."""
    count = unfit_for_cpu(model)
    layers = "one layer" if count == 1 else f"{count} layers"
    return (
        f"; not on a CPU: bitsandbytes 0.50 fails there on {layers} of these widths, or reads them wrong"
        if count
        else ""
    )


def runtimes_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The runtimes that load a finished model, each with how.

    Says nothing of tokenizers: ``loraprune export`` checks them when it writes.
    """
    config = model.config
    ours = bool(getattr(config, "pruned", None))
    how = "after `import loraprune`, or with trust_remote_code=True" if ours else "as it is"
    if is_quantized_model(model):
        return (f"transformers ({how}; it needs {_package(model)}{_unfit(model)})",)
    found = [f"transformers ({how})"]
    if _vllm_reads(config):
        found.append("vLLM (as it is)")
    architecture = _gguf_architecture(config)
    if architecture is not None:
        found.append(f"llama.cpp (loraprune export --format gguf, architecture {architecture})")
    # torch's exporter cannot write the grouped products of stacked experts.
    stacked = any(dimension.of_experts for dimension in describe(model))
    if not stacked and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForImageClassification")):
        found.append("onnxruntime (loraprune export --format onnx)")
    return tuple(found)
