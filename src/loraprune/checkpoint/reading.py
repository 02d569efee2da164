"""Errors of reading a checkpoint: what libraries raise becomes one line with the file, the field and the remedy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loraprune.architectures import UnsupportedArchitectureError, unsupported
from loraprune.checkpoint.names import DEMO, PRESETS
from loraprune.data.hub import missing_hub
from loraprune.options.near import did_you_mean, near_names
from loraprune.record.codec import read_json

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
_LONGEST = 300
_COUNTS = (
    *("hidden_size", "n_embd", "d_model", "num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "head_dim", "vocab_size"),
)
"""Config keys whose value must be at least 1."""
_KINDS: Mapping[str, tuple[type, str]] = {
    "architectures": (list, "a list of names"),
    "auto_map": (dict, "an object"),
    "pruned": (dict, "an object"),
    "quantization_config": (dict, "an object"),
}


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message says why and what to do."""


@contextmanager
def reading(what: str, remedy: str, values: object = None) -> Iterator[None]:
    """Turn an exception of a library into a :class:`CheckpointError` of one line.

    Put only calls of libraries inside: a bug of ours must not look like a mistake of the user.

    Args:
        what: sentence that says what failed, without its period.
        remedy: sentences that say what to do.
        values: values of the config that is read, to name the field.
    """
    try:
        yield
    except (CheckpointError, UnsupportedArchitectureError):
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {reason_of(error, values)}. {remedy}") from error


def reason_of(error: BaseException, values: object = None) -> str:
    """Return an exception's message as one line without its period, with the config fields whose values it quotes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "alidation error" in lines[0]:  # strict dataclasses: the reason is in the last line
        lines = [re.sub(r"^\w+Error: ", "", lines[-1]).partition(". Errors: ")[0]]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    text = said[:_LONGEST].rstrip(" .:") or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is not known"
    elif isinstance(error, ArithmeticError):
        text = f"{type(error).__name__}: {text}"
    named = [(name, value) for name, value in _texts(values) if re.search(rf"\b{re.escape(value)}\b", text)]
    fields = [f"{name} is {value!r}" for name, value in named if name not in text]
    return text + (f" ({', '.join(fields[:2])})" if fields else "")


def _texts(values: object, inside: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and value of each config field that holds text."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        path = f"{inside}{name}"
        if isinstance(value, Mapping):
            yield from _texts(value, f"{path}.")
        elif isinstance(value, str) and value and name != "model_type":
            yield path, value


def read_config_values(file: Path) -> dict[str, Any]:
    """Read a ``config.json`` and check the fields that are common to all models.

    Raises:
        CheckpointError: the file is not JSON, names no ``model_type``, or holds an impossible value.
    """
    again = f"Correct {file}, or fetch the checkpoint again."
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. Fetch the checkpoint again.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CheckpointError(f"{file} is not a model's config: it names no model_type. {again}")
    for name, (kind, words) in _KINDS.items():
        if values.get(name) is not None and not isinstance(values[name], kind):
            raise CheckpointError(f"{file} has {name} = {values[name]!r}; it must be {words}. {again}")
    lists = (values.get("pruned") or {}).get("lists", {})
    if not isinstance(lists, dict) or not all(isinstance(number, int) for number in lists.values()):
        raise CheckpointError(f"{file} has pruned.lists = {lists!r}; it must map names to integers. {again}")
    for name in _COUNTS:
        value = values.get(name)
        if isinstance(value, int) and value < 1:
            raise CheckpointError(f"{file} has {name} = {value}; it must be 1 or more. {again}")
    return values


def explain_config_error(error: Exception, name: str, values: Mapping[str, Any] | None) -> None:
    """Raise a more helpful error for a common error of ``AutoConfig``; return for all others.

    Args:
        error: error that ``AutoConfig`` raised.
        name: name of the checkpoint.
        values: values of a local ``config.json``; None for a name on the Hub.

    Raises:
        CheckpointError: the checkpoint needs its own code, or cannot be found.
        UnsupportedArchitectureError: transformers does not know the family.
    """
    from huggingface_hub.errors import HFValidationError

    text = str(error)
    if "trust_remote_code" in text:
        raise CheckpointError(
            f"{name} needs code from its own repository. Read that code first; if you trust it, pass "
            "--trust-remote-code."
        ) from error
    if values is not None and "does not recognize" in text:
        raise UnsupportedArchitectureError(unsupported(values["model_type"])) from error
    if values is None and isinstance(error, (OSError, HFValidationError)):
        reason = missing_hub() or f"the Hub does not provide it: {text.splitlines()[0]}"
        if isinstance(error, HFValidationError):
            reason = "it is not a valid name on the Hub"
        raise CheckpointError(
            f"{name} is neither a local folder nor in the Hub's cache, and {reason}. Name a folder that "
            f"save_pretrained wrote, or a model on the Hub.{_near_model(name)}"
        ) from error


def _near_model(name: str) -> str:
    """Suggest a folder, the bundled model or a preset with a similar name."""
    path = Path(name)
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = near_names(path.name, beside)
    if near:
        return f" Did you mean {path.parent / near[0]}?"
    return did_you_mean(name, (DEMO, *PRESETS)) if "/" not in name else ""


def gguf_file_of(path: Path) -> Path | None:
    """Return the GGUF file at a path: the path itself, or the only one in a folder without a config; else None.

    Raises:
        CheckpointError: the folder holds several GGUF files.
    """
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / MODEL_CONFIG).is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files and no config.json. Name one of them, such as {files[0]}."
        )
    return files[0] if files else None


def how_to_copy(name: str | Path) -> str:
    """Return the command that makes a 16-bit checkpoint from a quantized one or from a GGUF file."""
    return shlex.join(["loraprune", "export", str(name), "--format", "safetensors", "-o", "OUT"])


COPIED_METHODS = ("gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors")
"""Quantization methods that ``loraprune export --format safetensors`` converts to 16 bits."""


def how_to_take(name: str, settings: Any) -> str:
    """Return the error message for a quantized checkpoint.

    Args:
        name: name of the checkpoint.
        settings: ``quantization_config`` of its config.
    """
    values = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method", "")))
    named = f"{name} is quantized{f' ({method})' if method else ''}. Name the original checkpoint, in 16 or 32 bits"
    if method in COPIED_METHODS:
        return f"{named}, or make a 16-bit copy and name that: {how_to_copy(name)}."
    return (
        f"{named}. --load-in-8bit or --load-in-4bit then quantizes it for the run, and --keep-quantized keeps the "
        "result quantized."
    )


def check_whole_model(name: str) -> None:
    """Make sure that a folder holds a model's config.

    Raises:
        CheckpointError: the folder has no config, or does not exist.
    """
    folder = Path(name).expanduser()
    if (folder / MODEL_CONFIG).is_file():
        return
    file = gguf_file_of(folder)
    if file is not None:
        raise CheckpointError(
            f"{file} is a GGUF file. Make a 16-bit checkpoint from it, and name that: {how_to_copy(file)}."
        )
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{name} holds a LoRA adapter{_base_of(folder)}, not a model. Name the model that it was trained on; or "
            "merge it (peft: merge_and_unload, then save_pretrained), and name that folder."
        )
    raise CheckpointError(
        f"{name} is not a checkpoint: it has no config.json. Name a folder that save_pretrained wrote, or a model "
        "on the Hub."
    )


def _base_of(folder: Path) -> str:
    try:
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" on {base}" if isinstance(base, str) and base else ""


def check_tokenizer_files(name: str) -> None:
    """Make sure that ``sentencepiece`` is installed if the tokenizer is a SentencePiece model only.

    Raises:
        CheckpointError: it is not installed.
    """
    folder = Path(name).expanduser()
    models = [file.name for pattern in ("*.model", "*.spm") for file in folder.glob(pattern)] if folder.is_dir() else []
    if models and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise CheckpointError(
            f"The tokenizer of {name} is a SentencePiece model ({models[0]}), but sentencepiece is not installed: "
            'pip install "loraprune[sentencepiece]". Or name a checkpoint that has a tokenizer.json with --tokenizer.'
        )
