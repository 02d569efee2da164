"""Options as fields: types, ranges, choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from loraprune.options.field import check_fields, check_within, setting


@dataclass(frozen=True)
class Sample:
    share: float = setting(0.5, "a share", within="[0, 1)", why="a share of the whole")
    count: int = setting(3, within="[1, inf)")
    rate: float | None = setting(None, within="(0, inf)")
    on: bool = setting(True)
    name: str = setting("a", choices=("a", "b"))
    kinds: tuple[str, ...] | None = setting(None)
    layers: tuple[int | str, ...] = setting(())
    free: object = None

    def __post_init__(self) -> None:
        check_fields(self, "sample.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1.0}, r"sample.share is 1.0; it must lie in \[0, 1\): a share of the whole"),
        ({"share": float("nan")}, "sample.share is nan"),
        ({"share": "0.5"}, "sample.share is '0.5'; it must be a number"),
        ({"share": True}, "sample.share is True; it must be a number"),
        ({"share": None}, "sample.share is None; it must be a number"),
        ({"count": 0}, "sample.count is 0; it must be at least 1"),
        ({"count": 1.5}, "sample.count is 1.5; it must be a whole number"),
        ({"count": [3]}, r"sample.count is \(3,\); it must be a whole number"),
        ({"rate": 0.0}, "sample.rate is 0.0; it must be above 0"),
        ({"rate": float("inf")}, "sample.rate is inf; it must be a finite number"),
        ({"on": "yes"}, "sample.on is 'yes'; it must be true or false"),
        ({"on": 1}, "sample.on is 1; it must be true or false"),
        ({"name": "c"}, "sample.name is 'c'; choose one of a, b"),
        ({"name": {}}, "sample.name is {}; choose one of a, b"),
        ({"kinds": "heads"}, "sample.kinds is 'heads'; it must be a list of names"),
        ({"kinds": [1]}, r"sample.kinds is \(1,\); it must be a list of names"),
        ({"layers": [True]}, r"sample.layers is \(True,\); it must be a list of whole numbers and shares"),
        ({"layers": {0: 1}}, "sample.layers is {0: 1}; it must be a list"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_the_option_and_what_it_takes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"share": 0},
        {"share": np.float32(0.25)},
        {"count": np.int64(4)},
        {"rate": 1e-9},
        {"kinds": ["heads"]},
        {"layers": [0, "10%", -1]},
        {"free": {1: 2}},
    ],
    ids=str,
)
def test_a_right_value_is_taken_and_lists_become_tuples(given: dict[str, Any]) -> None:
    made = Sample(**given)
    ((name, value),) = given.items()
    assert getattr(made, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1)),
        ("(0, 1]", (1, 0.5), (0, 1.1)),
        ("[1, inf)", (1, 1e9), (0.9, float("inf"), float("nan"))),
        ("(0, inf)", (1e-9,), (0, -1, float("nan"))),
    ],
)
def test_bounds_belong_to_an_interval_as_its_brackets_say(interval: str, inside: Any, outside: Any) -> None:
    for value in inside:
        check_within("x", value, interval)
    for value in outside:
        with pytest.raises(ValueError, match="x is "):
            check_within("x", value, interval)
