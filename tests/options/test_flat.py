"""Configurations of parts: flat keywords, parts as objects, copies, and what has no meaning."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune import OneshotConfig, PruningConfig, Schedule, SparseConfig, Target
from loraprune.criteria import Compresso, Fisher, LoraGuided, Pst, Taylor
from loraprune.repairs import NoRepair, Refit, Stream

PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"ratio": 0.3, "keep_layers": [0]}, {"target": Target(ratio=0.3, keep_layers=(0,))}),
    ({"criterion": "taylor", "taylor_form": "first"}, {"criterion": Taylor(form="first")}),
    ({"criterion": "lora", "group_reduction": "max"}, {"criterion": LoraGuided(reduction="max")}),
    ({"repair": "stream", "damping": 0.1}, {"repair": Stream(damping=0.1)}),
    ({"repair": "none"}, {"repair": NoRepair()}),
    ({"prune_start": 0.2, "prune_end": 0.4, "cuts": 2}, {"schedule": Schedule(start=0.2, end=0.4, cuts=2)}),
    ({"prune_start": 0.0, "cuts": 1}, {"schedule": Schedule(start=0.0, cuts=1)}),
    ({"criterion": "compresso", "compresso": {"warmup": 0.2}}, {"criterion": Compresso(warmup=0.2)}),
    ({"criterion": "pst", "pst": Pst(rank=3)}, {"criterion": Pst(rank=3)}),
]


@pytest.mark.parametrize(("flat", "parts"), PAIRS, ids=[str(flat) for flat, _ in PAIRS])
def test_flat_keywords_and_parts_are_the_same(flat: dict[str, Any], parts: dict[str, Any]) -> None:
    config = PruningConfig(**flat)
    assert config == PruningConfig(**parts)
    found = config.flat()
    for name, value in flat.items():
        if not isinstance(value, (dict, Pst)):
            assert found[name] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("config", [PruningConfig(**flat) for flat, _ in PAIRS], ids=str)
def test_a_configuration_survives_copies_and_files(config: PruningConfig) -> None:
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == dataclasses.replace(config) == config
    assert hash(copy.deepcopy(config)) == hash(config)
    assert PruningConfig.from_saved(json.loads(json.dumps(config.to_saved()))) == config
    assert type(config)(**config.flat()) == config


def test_a_keyword_beside_a_part_changes_it() -> None:
    config = PruningConfig(target=Target(ratio=0.3, allocation="uniform"), ratio=0.6)
    assert config.target == Target(ratio=0.6, allocation="uniform")
    changed = dataclasses.replace(config, ratio=0.1, criterion="lora", lora_form="absolute")
    assert (changed.target.ratio, changed.criterion) == (0.1, LoraGuided("absolute"))
    assert config.changed(damping=0.5).repair == Refit(0.5)
    assert config.changed(channel_multiple=8).changed(channel_multiple=None) == config


def test_options_can_be_read_flat_and_show_defaults_where_nothing_in_use_has_them() -> None:
    config = PruningConfig(ratio=0.3, criterion="taylor", taylor_form="mix")
    assert (config.ratio, config.taylor_form, config.lora_form, config.pst) == (0.3, "mix", "squared", Pst())
    with pytest.raises(AttributeError, match="'PruningConfig' object has no attribute 'ratoi'"):
        _ = config.ratoi


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"ratoi": 0.3}, TypeError, "PruningConfig has no option 'ratoi'"),
        ({"taylor_form": "first"}, ValueError, "taylor_form is an option of the criterion 'taylor', but the criterion"),
        ({"lora_form": "cubed"}, ValueError, "lora_form is 'cubed'; choose one of squared, absolute"),
        ({"pst": {"rank": 3}}, ValueError, "Options of pst were given, but the criterion is 'fisher'"),
        ({"pst": {"rank": 0}}, ValueError, "pst.rank is 0"),
        ({"criterion": "nope"}, ValueError, "There is no criterion 'nope'; choose one of fisher, lora"),
        ({"repair": "nope"}, ValueError, "There is no repair 'nope'; choose one of refit, stream"),
        ({"repair": Refit}, ValueError, r"The repair is the class Refit; give an instance, Refit\(...\)"),
        (
            {"repair": 3},
            ValueError,
            "repair is 3; give an instance of Refit or Stream or StreamAndReaders or Bias or NoRepair",
        ),
        ({"target": {"ratio": 0.3}}, ValueError, "target is {'ratio': 0.3}; give an instance of Target"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PruningConfig(**values)


def test_a_damping_may_be_given_where_nothing_is_solved() -> None:
    assert PruningConfig(repair="none", damping=0.3).repair == NoRepair()
    assert SparseConfig(criterion="magnitude", damping=0.3) == SparseConfig(criterion="magnitude")


def test_options_of_criteria_that_are_not_in_use_are_left_out_of_files_of_older_runs() -> None:
    saved = PruningConfig().to_saved() | {"taylor_form": "first", "pst": {"rank": 3}}
    assert PruningConfig.from_saved(saved) == PruningConfig()


def test_what_is_off_its_default_is_found() -> None:
    assert PruningConfig(ratio=0.3, repair="stream").options_off_default() == {"ratio": 0.3, "repair": "stream"}
    assert OneshotConfig(ratio=0.3, cuts=4, criterion="fisher").options_off_default() == {"cuts": 4}
    assert SparseConfig(sparsity="2:4", block_size=64).options_off_default() == {"sparsity": "2:4", "block_size": 64}


RATIOS = st.floats(0.01, 0.99)


@given(
    ratio=RATIOS,
    allocation=st.sampled_from(["balanced", "uniform", "global"]),
    criterion=st.sampled_from(["fisher", "taylor", "lora", "magnitude", "wanda", "flap", "random", "pst"]),
    cuts=st.integers(1, 50),
    damping=st.floats(0.0, 10.0),
)
def test_any_configuration_round_trips(
    ratio: float, allocation: str, criterion: str, cuts: int, damping: float
) -> None:
    groups = {} if criterion == "pst" else {"allocation": allocation}
    config = PruningConfig(ratio=ratio, criterion=criterion, cuts=cuts, damping=damping, **groups)
    assert PruningConfig.from_saved(json.loads(json.dumps(config.to_saved()))) == config


def test_the_verbs_have_their_own_defaults() -> None:
    assert (PruningConfig().target.allocation, PruningConfig().repair) == ("balanced", Refit())
    assert PruningConfig().criterion == Fisher()
    config = OneshotConfig(ratio=0.5)
    assert (config.target.allocation, config.repair, config.criterion.name) == ("measured", Stream(), "osscar")
