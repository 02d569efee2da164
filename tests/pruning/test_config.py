from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from loraprune import PruningConfig

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 1.0}, r"ratio is 1\.0; it must lie in \[0, 1\)"),
    ({"ratio": -0.1}, r"ratio is -0\.1; it must lie in \[0, 1\)"),
    ({"ratio": float("nan")}, "ratio is nan"),
    (
        {"criterion": "fischer"},
        "There is no criterion 'fischer'; choose one of fisher, lora, taylor, magnitude, wanda, flap",
    ),
    ({"lora_form": "cubed"}, "lora_form is 'cubed'; choose one of squared, absolute"),
    ({"allocation": "ragged"}, "allocation is 'ragged'; choose one of measured, balanced, uniform"),
    ({"apply": "drop"}, "apply is 'drop'; choose one of slice, mask"),
    ({"prune_start": 0.4, "prune_end": 0.3}, r"prune_start is 0\.4 and prune_end is 0\.3"),
    ({"prune_start": -0.1}, r"prune_start is -0\.1"),
    ({"prune_end": 1.1}, r"prune_end is 1\.1"),
    ({"cuts": 0}, r"cuts is 0; it must lie in \[1, 1000000\]"),
    ({"compresso": {"prompt": "default"}}, "criterion is 'fisher'. Leave them out"),
    ({"cut_every": 0}, "cut_every is 0; it must be at least 1"),
    ({"average_decay": 1.0}, r"average_decay is 1\.0; it must lie in \[0, 1\)"),
    ({"average_decay": -0.5}, r"average_decay is -0\.5"),
    ({"damping": -1e-3}, r"damping is -0\.001; it must be at least 0"),
    ({"calibration_sequences": 0}, "calibration_sequences is below 1"),
    ({"apply": "mask"}, "A repair needs sliced tensors: use repair='none'"),
    ({"keep_layers": [0.5]}, "keep_layers is .*must be a list of whole numbers"),
    ({"keep_layers": [True]}, "keep_layers is .*must be a list of whole numbers"),
    ({"keep_layers": "0"}, "keep_layers is .*must be a list of whole numbers"),
    ({"dimensions": {"a": "b"}}, "dimensions is .*must be a list of names"),
    ({"dimensions": [1]}, "dimensions is .*must be a list of names"),
    ({"channel_multiple": 0}, "channel_multiple is 0; it must be at least 1"),
    ({"max_skipped_steps": -1}, "max_skipped_steps is -1; it must be at least 0"),
]

RIGHT: list[dict[str, Any]] = [
    {},
    {"ratio": 0.0},
    {"ratio": 0.999},
    {"criterion": "lora", "lora_form": "absolute"},
    {"prune_start": 0.0, "prune_end": 1.0},
    {"prune_start": 0.3, "prune_end": 0.3},
    {"average_decay": 0.0},
    {"damping": 0.0},
    {"repair": "none", "calibration_sequences": 0},
    {"repair": "none", "apply": "mask"},
    {"channel_multiple": 1},
    {"max_skipped_steps": 0},
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[str(values) for values, _ in WRONG])
def test_a_wrong_value_is_refused_with_the_value_and_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(**values)


@pytest.mark.parametrize("values", RIGHT, ids=str)
def test_values_on_the_edge_of_their_range_are_taken(values: dict[str, Any]) -> None:
    flat = PruningConfig(**values).flat()
    assert {name: flat[name] for name in values} == values


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PruningConfig().ratio = 0.3  # type: ignore[misc]


def test_values_are_given_by_name_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        PruningConfig(0.3)  # type: ignore[misc]
