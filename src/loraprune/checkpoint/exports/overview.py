"""Which runtimes load a result, in which versions, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, block_widths
from loraprune.checkpoint.exports.gguf.architecture import FAMILIES, architecture_for, gguf_head_dim
from loraprune.checkpoint.older_reader import missing_in_4
from loraprune.checkpoint.save import finish
from loraprune.layers.quantized import is_quantized_model, unfit_for_cpu
from loraprune.structure.describe import describe

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

VLLM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families for which the tests compare the config with what vLLM's stock class reads."""

TESTED = "5.20"
"""Lowest version of transformers 5 that this package supports and is tested with."""


def _stock_type(config: PretrainedConfig) -> str:
    pruned = getattr(config, "pruned", None)
    return str(pruned["base_model_type"] if pruned else config.model_type)


def _missing_in_vllm(config: PretrainedConfig) -> str | None:
    """Return why vLLM does not load a model, as far as is known; None if its class reads the config correctly."""
    pruned = getattr(config, "pruned", None)
    if pruned:
        uneven = len({tuple(sorted(widths.items())) for widths in pruned["blocks"].values()}) > 1
        way_out = "; `--allocation balanced` gives all layers the same widths" if uneven else ""
        return f"no, its config cannot state these widths{way_out}"
    if config.model_type not in VLLM_FAMILIES:
        return f"not compared for {config.model_type}, only for {', '.join(VLLM_FAMILIES)}"
    # vLLM's Qwen2 divides the hidden size by the number of heads and does not read head_dim.
    if config.model_type == "qwen2" and gguf_head_dim(config) * config.num_attention_heads != config.hidden_size:
        return "no, its Qwen2 takes no head_dim; `--dimensions channels` avoids it"
    return None


def _in_llama_cpp(config: PretrainedConfig) -> str:
    """Return llama.cpp's architecture for a model and the export command, or why there is none."""
    if _stock_type(config) not in FAMILIES:
        return f"llama.cpp: no export of {_stock_type(config)}, only of {', '.join(FAMILIES)}; try its own converter"
    try:
        widths = block_widths(config.to_dict(), getattr(config, "pruned", None))
        name = architecture_for(_stock_type(config), config, widths).name
    except RuntimeFormatError as error:
        return f"llama.cpp: no. {str(error).partition('. ')[0].removesuffix('.')}"
    return f"llama.cpp (loraprune export --format gguf, architecture {name})"


def _package(model: PreTrainedModel) -> str:
    """Return the package that reads the weights of a quantized model."""
    method = model.config.quantization_config.quant_method
    return str(getattr(method, "value", method))


def _unfit(model: PreTrainedModel) -> str:
    """Return a warning if bitsandbytes fails or computes wrong results on a CPU; empty if it does not."""
    count = unfit_for_cpu(model)
    layers = "one layer" if count == 1 else f"{count} layers"
    return (
        f"; not on a CPU: bitsandbytes 0.50 fails there on {layers} of these widths, or reads them wrong"
        if count
        else ""
    )


def _in_transformers(model: PreTrainedModel) -> str:
    """Return the versions of transformers that load a model, how, and why older ones do not."""
    missing = missing_in_4(model)
    version, from_5, why = ("4.57", f", from {TESTED},", "") if missing is None else (TESTED, "", f"; {missing}")
    if getattr(model.config, "pruned", None):
        return f"transformers >= {version} (with trust_remote_code=True, or{from_5} after `import loraprune`{why})"
    return f"transformers >= {version} (as it is{why})"


def runtimes_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Return one line for each runtime: how it loads a finished model, or why it does not.

    Tokenizers are not considered: ``loraprune export`` checks them.

    Args:
        model: finished model; it may be on the meta device.
    """
    config = model.config
    if is_quantized_model(model):
        ours = bool(getattr(config, "pruned", None))
        how = "after `import loraprune`, or with trust_remote_code=True" if ours else "as it is"
        return (f"transformers >= {TESTED} ({how}; it needs {_package(model)}{_unfit(model)})",)
    found = [_in_transformers(model)]
    writes = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    if writes:
        missing = _missing_in_vllm(config)
        found += ["vLLM (as it is)" if missing is None else f"vLLM: {missing}", _in_llama_cpp(config)]
    # torch's exporter cannot write the grouped products of stacked experts.
    if any(dimension.of_experts for dimension in describe(model)):
        found.append("onnxruntime: no, torch cannot export stacked experts")
    elif writes or type(model).__name__.endswith("ForImageClassification"):
        found.append("onnxruntime (loraprune export --format onnx)")
    return tuple(found)


def runtimes_after(model: nn.Module, structure: Structure, plan: Plan) -> tuple[str, ...]:
    """Return the lines of :func:`runtimes_of` for the result of a planned run, from shapes alone.

    Args:
        model: model on the meta device, cut to the plan, modified in place.
        structure: structure of the model before pruning.
        plan: final plan of the run.
    """
    try:
        return runtimes_of(finish(model, structure, plan))
    except ValueError as error:
        return (f"nothing. {error}",)
