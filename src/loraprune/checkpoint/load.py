"""Loading of a checkpoint's config, tokenizer and weights, optionally quantized."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.architectures import UnsupportedArchitectureError, spec_for
from loraprune.checkpoint.reading import (
    MODEL_CONFIG,
    check_tokenizer_files,
    check_whole_model,
    explain_config_error,
    how_to_take,
    read_config_values,
    reading,
)
from loraprune.checkpoint.reading import (
    CheckpointError as CheckpointError,
)
from loraprune.checkpoint.sharded import sharded_loading, take_over_
from loraprune.checkpoint.tied_weights import mend_tied_
from loraprune.checkpoint.weight_files import check_weight_files
from loraprune.data.encoding import longest_input
from loraprune.data.hub import hub_or_cache
from loraprune.layers.quantized import prepare_
from loraprune.options.precision import DTYPE_NAMES, check_quantization

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


_AUTO_CLASSES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
"""Auto classes of transformers, and the mapping that lists the model classes of each."""
_ANY_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
"""Auto classes to try for any other model, in order of preference."""
PRUNED = "Pruned"
"""Prefix of the names of classes for widths that no stock config can state."""


def _is_local(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~"))


def load_config(
    name: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    described: bool = True,
    quantized: bool = False,
) -> PretrainedConfig:
    """Read the config of a checkpoint and make sure that its family has a description.

    Args:
        name: a folder, or a name on the Hub.
        trust_remote_code: run code from the checkpoint.
        revision: revision of a Hub checkpoint.
        described: whether the family must have a description.
        quantized: whether the checkpoint may be quantized.

    Raises:
        CheckpointError: there is no such checkpoint, it needs its own code, or it is quantized and must not be.
        UnsupportedArchitectureError: the family has no description.
    """
    from transformers import AutoConfig

    values, remedy = None, "Fetch the checkpoint again, or name another one."
    if _is_local(name):
        check_whole_model(name)
        file = Path(name).expanduser() / MODEL_CONFIG
        values, remedy = read_config_values(file), f"Correct {file}, or fetch the checkpoint again."
    with reading(f"The config of {name} cannot be read", remedy, values), hub_or_cache(name):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
        except (OSError, ValueError) as error:
            explain_config_error(error, name, values)
            raise
    if described:
        spec_for(config)
    if getattr(config, "quantization_config", None) and not quantized:
        raise CheckpointError(how_to_take(name, config.quantization_config))
    return config


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: it has none.
    """
    from transformers import AutoTokenizer

    remedy = "Name a checkpoint that has one with --tokenizer."
    with reading(f"No tokenizer can be loaded from {name}", remedy), hub_or_cache(name):
        check_tokenizer_files(name)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    if len(tokenizer) == 0:
        raise CheckpointError(f"The tokenizer of {name} is empty. Name a checkpoint that has one with --tokenizer.")
    return tokenizer


def give_pad_token_(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a pad token another token to pad with; padded positions are masked anyway."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens([0])[0]
        )


def load_image_processor(
    name: str, *, required: bool = False, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """Load the image processor of a checkpoint. Return None if it has none.

    Raises:
        CheckpointError: the image processor is required and missing.
    """
    try:
        with reading(f"No image processor can be loaded from {name}", "Name one."), hub_or_cache(name):
            from transformers import AutoImageProcessor

            return AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except CheckpointError:
        if not required:
            return None
        raise


def loading_class(class_name: str) -> str | None:
    """Return the auto class that loads a model class, or our subclass of it; None if no auto class does."""
    from transformers.models.auto import modeling_auto

    wanted = {class_name, class_name.removeprefix(PRUNED)}
    for auto_class, mapping in _AUTO_CLASSES.items():
        for known in getattr(modeling_auto, mapping).values():
            if not wanted.isdisjoint((known,) if isinstance(known, str) else known):
                return auto_class
    return None


def auto_class_of(config: PretrainedConfig) -> str:
    """Return the auto class that loads a checkpoint, by the class that its config names or by its family.

    Raises:
        ValueError: no auto class loads it.
    """
    names = getattr(config, "architectures", None) or ()
    found = loading_class(names[0]) if names else None
    try:
        return found or spec_for(config).auto_class
    except UnsupportedArchitectureError:
        return any_auto_class(config)


def any_auto_class(config: PretrainedConfig) -> str:
    """Return the auto class that makes the model that the config names, or else the first that makes any model.

    Raises:
        ValueError: no auto class makes a model of this config.
    """
    brought = getattr(config, "auto_map", None) or {}
    made = {
        name: {brought[name].rpartition(".")[2]} if name in brought else _makes(name, config)
        for name in _ANY_AUTO_CLASSES
    }
    named = set(getattr(config, "architectures", None) or ())
    for name in (*(name for name in made if made[name] & named), *(name for name in made if made[name])):
        return name
    raise ValueError(
        f"transformers has a config for models of type {config.model_type!r}, but none of these classes makes such a "
        f"model: {', '.join(_ANY_AUTO_CLASSES)}."
    )


def _makes(auto_class: str, config: PretrainedConfig) -> set[str]:
    """Return the names of the model classes that an auto class makes of a config."""
    import transformers

    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        return set()
    found = mapping[type(config)]
    return {each.__name__ for each in (found if isinstance(found, tuple | list) else (found,))}


def is_remote(config: PretrainedConfig) -> bool:
    """Whether a config's class comes from its checkpoint's own code, which runs only if the user trusts it."""
    return type(config).__module__.startswith("transformers_modules")


def meta_model(config: PretrainedConfig, auto_class: str | None = None) -> PreTrainedModel:
    """Make the model on the meta device: names and shapes without memory for weights."""
    with torch.device("meta"):
        model = random_model(config, auto_class or auto_class_of(config))
    model.tie_weights()
    return model


def random_model(config: PretrainedConfig, auto_class: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Make a model with random weights from a config, by an auto class of transformers."""
    import transformers

    auto: Any = getattr(transformers, auto_class)
    classes = auto._model_mapping.get(type(config), None)
    if isinstance(classes, (tuple, list)) and not getattr(config, "architectures", None):
        # If there are several classes, transformers chooses by config.architectures.
        config = copy.deepcopy(config)
        config.architectures = [classes[0].__name__]
    further = {} if dtype is None else {"dtype": dtype}
    model: PreTrainedModel = auto.from_config(config, trust_remote_code=is_remote(config), **further)
    return model


def context_of(config: PretrainedConfig, model: nn.Module) -> int | None:
    """Return the largest number of tokens that a model can read; None if its positions have no limit.

    Families such as RoBERTa start to count positions after the padding index, so their table has unused rows.
    """
    context = longest_input(config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return context


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype:
    """Return the dtype of a checkpoint's weights according to its config; float32 if the config has none."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = DTYPES.get(dtype.removeprefix("torch."))
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def working_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to train in: the stored one on an accelerator; float32 on a CPU, which is slow in 16 bits.

    A 16-bit checkpoint is trained in float32 if the GPU has no bfloat16.
    """
    if device.type == "cpu":
        return torch.float32
    if stored.itemsize == 2 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return stored


def load_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    auto_class: str = "AutoModelForCausalLM",
    trust_remote_code: bool = False,
    revision: str | None = None,
    quantization: str | None = None,
    quantized: bool = False,
    sharded: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint onto a device, by an auto class of transformers, and quantize it if ``quantization`` is set.

    Args:
        name: name or folder of the checkpoint.
        dtype: dtype of weights that are not quantized.
        device: device to load onto.
        auto_class: name of the auto class.
        trust_remote_code: run code from the checkpoint.
        revision: revision of a Hub checkpoint.
        quantization: one of :data:`~loraprune.options.precision.QUANTIZATIONS`, or None.
        quantized: whether the checkpoint itself is quantized.
        sharded: shard the weights over the processes of the run (FSDP2); each process reads its own part.

    Raises:
        CheckpointError: files are missing or broken, or tensors are missing from them.
        WeightIndexError: the index of the weights names files outside its folder.
    """
    import transformers

    check_weight_files(name)
    further: dict[str, Any] = sharded_loading() if sharded else {"device_map": {"": device}} if quantized else {}
    if quantization is not None:
        further = {"quantization_config": quantization_config(quantization, dtype), "device_map": {"": device}}
    remedy = "Only safetensors files are supported. Fetch the checkpoint again, or name another one."
    values = read_config_values(Path(name).expanduser() / MODEL_CONFIG) if _is_local(name) else None
    with reading(f"The weights of {name} cannot be loaded", remedy, values), hub_or_cache(name), _shapes_agree(name):
        model, info = getattr(transformers, auto_class).from_pretrained(
            name,
            dtype=dtype,
            **further,
            trust_remote_code=trust_remote_code,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"] if isinstance(info, dict) else info.missing_keys)
    if missing:
        raise CheckpointError(
            f"{name} lacks weights of its model: {len(missing)} are missing, the first is {missing[0]}."
        )
    if sharded:
        take_over_(model)
    placed: PreTrainedModel = model if further else model.to(device)
    prepare_(placed)
    mend_tied_(placed, name, said=not _is_local(name))  # for a folder, the warning came when the config was read
    return placed


@contextmanager
def _shapes_agree(name: str) -> Iterator[None]:
    """Explain shape mismatches; transformers' error only suggests its argument ``ignore_mismatched_sizes``."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckpointError(
            f"{name} holds tensors whose shapes differ from its config.json. Correct config.json, or download the "
            "checkpoint again."
        ) from error


def default_device() -> torch.device:
    """Return the current CUDA device of this process, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """Return the quantization config of transformers for one of our names.

    Args:
        name: one of :data:`~loraprune.options.precision.QUANTIZATIONS`.
        dtype: dtype to compute in.
    """
    check_quantization(name)
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    from transformers import BitsAndBytesConfig

    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
