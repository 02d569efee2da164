"""Checkpoints in: config, tokenizer and weights, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.architectures import UnsupportedArchitectureError, spec_for, unsupported

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message says why and what to do."""


def _is_local(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~"))


def load_config(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PretrainedConfig:
    """Read the config of a checkpoint (a folder or a hub name) and make sure that its family is supported.

    Raises:
        CheckpointError: there is no such checkpoint, or it needs code of its own.
        UnsupportedArchitectureError: the family has no description.
    """
    from transformers import AutoConfig

    if _is_local(name) and not (Path(name).expanduser() / "config.json").is_file():
        raise CheckpointError(
            f"{name} is no checkpoint: it has no config.json. Name a folder that save_pretrained wrote, or a model "
            "of the hub."
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise CheckpointError(
                f"{name} needs code from its own repository. Read that code first; if you trust it, pass "
                "--trust-remote-code."
            ) from error
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{name} is neither a folder with a config.json nor a model that the hub gives out: "
                f"{text.splitlines()[0]}"
            ) from error
        model_type = _model_type(name)
        if model_type is not None and "does not recognize" in text:
            raise UnsupportedArchitectureError(unsupported(model_type)) from error
        raise CheckpointError(f"The config of {name} cannot be read: {text.splitlines()[0]}") from error
    spec_for(config)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(
            f"{name} is quantized. This version prunes weights in 16 or 32 bits only: name the original checkpoint."
        )
    return config


def _model_type(name: str) -> str | None:
    """The type that a local config names, also one that transformers does not know."""
    try:
        value = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: it has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:
        raise CheckpointError(
            f"No tokenizer can be loaded from {name}: {str(error).splitlines()[0]} "
            "Name a checkpoint that has one with --tokenizer."
        ) from error
    if len(tokenizer) == 0:
        raise CheckpointError(f"The tokenizer of {name} is empty. Name a checkpoint that has one with --tokenizer.")
    return tokenizer


def give_pad_token_(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a pad token pad with another token; padded positions are never attended to."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens([0])[0]
        )


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model without its weights: names and shapes only, in no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype:
    """The dtype in which a checkpoint's weights are stored, as its config says; float32 where it does not."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = DTYPES.get(dtype.removeprefix("torch."))
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def working_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to train in: the checkpoint's own on an accelerator, 32 bits on a CPU, which is slow in 16.

    A float16 checkpoint is trained in 32 bits where the accelerator has no bfloat16.
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
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a checkpoint's weights onto a device.

    Raises:
        CheckpointError: files are missing or broken, or tensors are missing from them.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"The weights of {name} cannot be loaded: {str(error).splitlines()[0]} "
            "(weights are read from safetensors files only)"
        ) from error
    model, info = loaded
    missing = sorted(_missing(info))
    if missing:
        raise CheckpointError(
            f"{name} does not hold all weights of its model: {len(missing)} are missing, the first is {missing[0]}."
        )
    placed: PreTrainedModel = model.to(device)
    return placed


def _missing(info: Any) -> set[str]:
    keys = info["missing_keys"] if isinstance(info, dict) else info.missing_keys
    return set(keys)


def default_device() -> torch.device:
    """The first accelerator, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
