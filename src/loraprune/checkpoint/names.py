"""Names of models that need no download: the bundled model, and presets of well-known models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraprune.data.demo import demo_model

_LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048}
LLAMA_2: dict[str, Any] = {**_LLAMA, "max_position_embeddings": 4096}
LLAMA_3: dict[str, Any] = {
    **_LLAMA, "vocab_size": 128256, "max_position_embeddings": 8192, "num_key_value_heads": 8,
}  # fmt: skip
QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768}
SMALL_QWEN: dict[str, Any] = {**QWEN, "vocab_size": 151936, "tie_word_embeddings": True}
QWEN_3: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128,
    "num_key_value_heads": 8,
}  # fmt: skip


def _shape(family: dict[str, Any], hidden: int, ffn: int, layers: int, heads: int, **further: Any) -> dict[str, Any]:
    return {
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
        **family,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "dtype": "bfloat16",
        **further,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b": _shape(_LLAMA, 4096, 11008, 32, 32),
    "llama-13b": _shape(_LLAMA, 5120, 13824, 40, 40),
    "llama-30b": _shape(_LLAMA, 6656, 17920, 60, 52),
    "llama-65b": _shape(_LLAMA, 8192, 22016, 80, 64),
    "llama-2-7b": _shape(LLAMA_2, 4096, 11008, 32, 32),
    "llama-2-13b": _shape(LLAMA_2, 5120, 13824, 40, 40),
    "llama-2-70b": _shape(LLAMA_2, 8192, 28672, 80, 64, num_key_value_heads=8),
    "llama-3-8b": _shape(LLAMA_3, 4096, 14336, 32, 32),
    "llama-3-70b": _shape(LLAMA_3, 8192, 28672, 80, 64),
    "llama-3.1-405b": _shape(LLAMA_3, 16384, 53248, 126, 128, max_position_embeddings=131072),
    "llama-3.2-1b": _shape(LLAMA_3, 2048, 8192, 16, 32, tie_word_embeddings=True, max_position_embeddings=131072),
    "llama-3.2-3b": _shape(LLAMA_3, 3072, 8192, 28, 24, tie_word_embeddings=True, max_position_embeddings=131072),
    "mistral-7b": _shape(
        {"model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": None},
        4096, 14336, 32, 32, num_key_value_heads=8,
    ),
    "qwen2.5-0.5b": _shape(SMALL_QWEN, 896, 4864, 24, 14, num_key_value_heads=2),
    "qwen2.5-1.5b": _shape(SMALL_QWEN, 1536, 8960, 28, 12, num_key_value_heads=2),
    "qwen2.5-7b": _shape(QWEN, 3584, 18944, 28, 28, num_key_value_heads=4),
    "qwen2.5-14b": _shape(QWEN, 5120, 13824, 48, 40, num_key_value_heads=8),
    "qwen2.5-32b": _shape(QWEN, 5120, 27648, 64, 40, num_key_value_heads=8),
    "qwen2.5-72b": _shape(QWEN, 8192, 29568, 80, 64, num_key_value_heads=8),
    "qwen3-4b": _shape(QWEN_3, 2560, 9728, 36, 32, tie_word_embeddings=True),
    "qwen3-8b": _shape(QWEN_3, 4096, 12288, 36, 32),
}  # fmt: skip
"""Config values by name of the preset. A folder or file of the same name takes precedence."""

DEMO = "demo"
"""Name of the bundled model and of its text."""


def is_preset(name: str | Path) -> bool:
    """Whether a name is a preset. A file or folder of that name takes precedence."""
    return str(name) in PRESETS and not Path(name).exists()


def check_no_preset(name: str | Path) -> None:
    """Make sure that a name is not a preset, which has no weights.

    Raises:
        ValueError: the name is a preset.
    """
    if is_preset(name):
        raise ValueError(
            f"{name} is a preset, the shape of a model without weights, for loraprune inspect and loraprune plan only. "
            "Name a checkpoint here: a folder, or OWNER/NAME on the Hub."
        )


def expanded(name: str | Path) -> str:
    """Expand a model's name: ``demo`` becomes the folder of the bundled model, ``~`` the user's home.

    A file or folder ``demo`` in the working directory takes precedence.
    """
    if str(name) == DEMO and not Path(name).exists():
        return str(demo_model())
    return str(Path(name).expanduser()) if str(name).startswith("~") else str(name)


def as_typed(name: str) -> str:
    """Return a model's name as a user types it: ``demo`` for the folder of the bundled model."""
    return DEMO if name == str(demo_model()) and not Path(DEMO).exists() else name
