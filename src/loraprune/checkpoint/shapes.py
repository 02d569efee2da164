"""Models by their config alone: folders, files, presets and names on the Hub."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.architectures import UnsupportedArchitectureError, spec_for, unsupported
from loraprune.checkpoint.names import PRESETS, is_preset
from loraprune.checkpoint.reading import CheckpointError, gguf_file_of, read_config_values, reading
from loraprune.checkpoint.source import ModelSource
from loraprune.options.near import near_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def find_shapes(
    name: str, *, described: bool = True, trust_remote_code: bool = False, revision: str | None = None
) -> ModelSource:
    """Find the model for a folder, a ``config.json``, a preset, or a name on the Hub. Weights are not needed.

    Args:
        name: name as the user typed it.
        described: whether the family must have a description.
        trust_remote_code: run code from the checkpoint.
        revision: revision of a Hub checkpoint.

    Raises:
        CheckpointError: there is no such model, or its config is not usable.
        UnsupportedArchitectureError: the family has no description.
    """
    path = Path(name).expanduser()
    if path.is_file() and gguf_file_of(path) is None:
        return ModelSource(name=name, config=_of_values(read_config_values(path), name, described))
    if is_preset(name):
        return ModelSource(name=name, config=_of_values(PRESETS[name], name, described))
    if not path.exists() and "/" not in name:
        near = near_names(name, PRESETS)
        if near:
            raise CheckpointError(
                f"There is no folder {name!r} and no preset of that name. Did you mean {near[0]!r}? "
                "Models on the Hub are named with their owner: OWNER/NAME."
            )
    return ModelSource.of(name, described=described, trust_remote_code=trust_remote_code, revision=revision)


def _of_values(values: dict[str, Any], name: str, described: bool) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    kind, further = values["model_type"], {key: value for key, value in values.items() if key != "model_type"}
    if further.get("quantization_config"):
        raise CheckpointError(
            f"{name} is quantized. Name the config of the original; --load-in-8bit or --load-in-4bit quantizes it for "
            "the run."
        )
    if kind not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(unsupported(kind))
    with reading(f"The config of {name} cannot be read", f"Correct {name}.", values):
        config: PretrainedConfig = AutoConfig.for_model(kind, **copy.deepcopy(further))
    if described:
        spec_for(config)
    return config
