"""Fields and keywords under their old names."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from typing import Any

import pytest

from loraprune import EvaluationConfig, OneshotConfig, PruningConfig, evaluate, oneshot
from loraprune.compat.renamed import Renamed, renamed_keywords, translated, under_old_names
from loraprune.pruning.config import RENAMED

SAID = "is now called"

PRUNING = [
    ({"refit": False}, {"repair": "none"}),
    ({"refit": True}, {"repair": "refit"}),
    ({"refit_damping": 0.5}, {"damping": 0.5}),
    ({"any_head_count": True}, {"head_counts": "any"}),
    ({"any_head_count": False}, {"head_counts": "config"}),
]
ONESHOT = [
    ({"method": "wanda"}, {"criterion": "wanda"}),
    ({"any_head_count": True}, {"head_counts": "any"}),
    ({"any_head_count": None}, {}),
]


@pytest.mark.parametrize(("old", "new"), PRUNING)
def test_a_pruning_config_takes_and_shows_old_names(old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match=SAID):
        config = PruningConfig(**old)
    assert config == PruningConfig(**new)
    ((name, value),) = old.items()
    with pytest.warns(FutureWarning, match=SAID):
        assert getattr(config, name) == value


@pytest.mark.parametrize(("old", "new"), ONESHOT)
def test_a_oneshot_config_takes_old_names(old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match=SAID):
        config = OneshotConfig(ratio=0.5, **old)
    assert config == OneshotConfig(ratio=0.5, **new)


def test_a_copy_can_be_changed_under_an_old_name() -> None:
    with pytest.warns(FutureWarning, match="'refit' is now called 'repair'"):
        assert replace(PruningConfig(), refit=False) == PruningConfig(repair="none")  # type: ignore[call-arg]


CHANGED = [
    (PruningConfig(repair="none"), {"refit": True}, {"repair": "refit"}),
    (PruningConfig(damping=0.1), {"refit_damping": 0.2}, {"damping": 0.2}),
    (PruningConfig(head_counts="any"), {"any_head_count": False}, {"head_counts": "config"}),
    (OneshotConfig(ratio=0.2, criterion="wanda"), {"method": "magnitude"}, {"criterion": "magnitude"}),
    (OneshotConfig(ratio=0.2, head_counts="any"), {"any_head_count": None}, {"head_counts": None}),
]


@pytest.mark.parametrize(("config", "old", "new"), CHANGED)
def test_a_copy_of_any_config_can_be_changed_under_an_old_name(config: Any, old: Any, new: Any) -> None:
    with pytest.warns(FutureWarning, match=SAID) as caught:
        assert replace(config, **old) == replace(config, **new)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("repair", ["none", "refit"])
def test_two_names_that_say_different_things_are_refused(repair: str) -> None:
    with (
        pytest.warns(FutureWarning, match=SAID),
        pytest.raises(TypeError, match="'refit' is the old name of 'repair'; give one of them"),
    ):
        PruningConfig(repair=repair, refit=repair == "none")  # type: ignore[call-arg]


def test_defaults_show_under_old_names() -> None:
    with pytest.warns(FutureWarning, match=SAID):
        assert OneshotConfig(ratio=0.5).any_head_count is False
    assert not PruningConfig().free_head_counts
    assert PruningConfig(allocation="global").free_head_counts


def test_the_warning_points_at_the_line_that_uses_the_old_name() -> None:
    with pytest.warns(FutureWarning, match=SAID) as caught:
        PruningConfig(refit=False)
    assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match=SAID) as caught:
        OneshotConfig(method="wanda", sparsity=0.5)
    assert caught[0].filename == __file__


def test_new_names_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = PruningConfig(repair="none", damping=0.1, head_counts="any")
        assert PruningConfig.from_saved(config.to_saved()) == config
        OneshotConfig(ratio=0.5, criterion="wanda", head_counts="any").settings()


def test_files_keep_the_first_names_in_their_order() -> None:
    saved = PruningConfig(repair="none", head_counts="any").to_saved()
    assert (saved["refit"], saved["refit_damping"], saved["any_head_count"]) == (False, 0.01, True)
    assert not {new.name for new in RENAMED.values()} & saved.keys()
    assert list(translated(saved, {})) == list(saved)
    assert under_old_names(asdict(PruningConfig()), {}) == asdict(PruningConfig())


def test_functions_take_old_keywords() -> None:
    @renamed_keywords(told="progress")
    def work(*, progress: Any = None) -> Any:
        return progress

    with pytest.warns(FutureWarning, match=r"work\(\): 'told' is now called 'progress'"):
        assert work(told=1) == 1  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="give one of them"):
        work(told=1, progress=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "call",
    [lambda: oneshot("nowhere", told=print), lambda: evaluate([], EvaluationConfig(ppl=("wikitext2",)), told=print)],
)
def test_the_two_functions_that_had_the_old_keyword_take_it(call: Any) -> None:
    with pytest.warns(FutureWarning, match="'told' is now called 'progress'"), pytest.raises(ValueError, match=r"\w"):
        call()


def test_values_change_forward_and_back() -> None:
    renamed = {"off": Renamed("on", lambda off: not off, lambda on: not on)}
    assert translated({"off": True, "other": 1}, renamed) == {"on": False, "other": 1}
    assert under_old_names({"on": False, "other": 1}, renamed) == {"off": True, "other": 1}
