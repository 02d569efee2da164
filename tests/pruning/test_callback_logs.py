from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.pruning.runs import CUT_STEPS, STEPS, make_trainer, pruning_config
from transformers import TrainerCallback

from loraprune import PruningCallback
from loraprune.pruning.groups import CutRecord
from loraprune.pruning.live_values import cut_values, importance_quantiles
from loraprune.surgery.output_error import ConsumerError


class Listener(TrainerCallback):
    """Keeps what it is told, as a callback that writes logs does; it stands before the one that prunes."""

    def __init__(self) -> None:
        self.logs: dict[int, dict[str, Any]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.logs[state.global_step] = dict(logs)


def listened(folder: Path, **changes: Any) -> tuple[PruningCallback, dict[int, dict[str, Any]]]:
    listener, callback = Listener(), PruningCallback(pruning_config(**changes))
    trainer = make_trainer(folder, [listener, callback])
    callback.lead_(trainer)
    trainer.train()
    return callback, listener.logs


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruningCallback, dict[int, dict[str, Any]]]:
    return listened(tmp_path_factory.mktemp("run"))


Logged = tuple[PruningCallback, dict[int, dict[str, Any]]]


def keys(logs: dict[str, Any], prefix: str) -> set[str]:
    return {name for name in logs if name.startswith(prefix)}


def test_a_callback_that_stands_before_it_hears_it_once_it_leads(logged: Logged) -> None:
    callback, logs = logged
    assert sorted(logs) == list(range(1, STEPS + 1))
    assert logs[STEPS]["sparsity_ratio"] == callback.run.ratio
    assert logs[STEPS]["base_parameters"] == callback.run.num_parameters


def test_quantiles_of_the_scores_are_logged_up_to_the_last_cut(logged: Logged) -> None:
    _, logs = logged
    for step in range(1, STEPS + 1):
        expected = {f"importance/{kind}/{q}" for kind in ("heads", "channels") for q in ("q10", "q50", "q90")}
        assert keys(logs[step], "importance/") == (expected if step < CUT_STEPS[-1] else set())
    assert all(logs[1][f"importance/{kind}/q10"] <= logs[1][f"importance/{kind}/q90"] for kind in ("heads", "channels"))


def test_a_cut_is_told_at_the_log_after_it_and_only_there(logged: Logged) -> None:
    _, logs = logged
    for step in range(1, STEPS + 1):
        assert bool(keys(logs[step], "refit_error/")) == (step in CUT_STEPS)
        # At the first cut there is no earlier ranking.
        assert bool(keys(logs[step], "stability/")) == (step in CUT_STEPS[1:])
    errors = logs[CUT_STEPS[0]]
    assert 0.0 < errors["refit_error/channels/repaired"] < errors["refit_error/channels/cut"]
    assert all(-1.0 <= logs[step]["stability/channels"] <= 1.0 for step in CUT_STEPS[1:])


def test_seconds_go_to_their_phases(logged: Logged) -> None:
    callback, logs = logged
    assert keys(logs[1], "seconds/") == {"seconds/training_before_the_cuts"}
    assert keys(logs[STEPS], "seconds/") == {
        "seconds/training_before_the_cuts",
        "seconds/training_between_cuts",
        "seconds/cutting_and_repairing",
        "seconds/training_after_the_cuts",
    }
    cuts = [record.seconds for record in callback.run.records]
    assert sum(cuts) == pytest.approx(callback.phases.seconds["cutting and repairing"], rel=0.1)


def test_everything_logged_is_a_finite_number(logged: Logged) -> None:
    """Writers of logs take numbers alone."""
    _, logs = logged
    for entry in logs.values():
        for name, value in entry.items():
            assert isinstance(value, (int, float)), name
            assert math.isfinite(value), name


def test_a_criterion_without_averages_logs_none(tmp_path: Path) -> None:
    _, logs = listened(tmp_path, criterion="magnitude")
    assert not any(keys(entry, "importance/") for entry in logs.values())
    assert keys(logs[CUT_STEPS[1]], "stability/")


def test_a_cut_between_two_logs_is_told_at_the_next(tmp_path: Path) -> None:
    listener, callback = Listener(), PruningCallback(pruning_config())
    trainer = make_trainer(tmp_path, [callback, listener], logging_steps=4)
    trainer.train()
    assert [step for step, logs in listener.logs.items() if keys(logs, "refit_error/")] == [4, 8]


def test_a_run_goes_on_where_what_is_logged_live_cannot_be_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> dict[str, float]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("loraprune.pruning.callback.live_values", fail)
    with pytest.warns(
        UserWarning, match=r"could not be computed and are no longer logged \(RuntimeError: no such kernel\)"
    ) as warned:
        callback, logs = listened(tmp_path)
    assert len([warning for warning in warned if "no such kernel" in str(warning.message)]) == 1
    assert callback.run.ratio == pytest.approx(0.5, abs=0.05)
    assert [point["step"] for point in callback.history] == list(range(1, STEPS + 1))
    assert "sparsity_ratio" in logs[STEPS]


@pytest.mark.parametrize("leads", [False, True])
def test_writers_that_will_get_nothing_are_told_of(tmp_path: Path, leads: bool) -> None:
    callback = PruningCallback(pruning_config())
    trainer = make_trainer(tmp_path, [callback], max_steps=1, save_strategy="no")
    trainer.args.report_to = ["tensorboard", "wandb"]
    if leads:
        callback.lead_(trainer)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.train()
    found = [str(warning.message) for warning in warned if "lead_" in str(warning.message)]
    assert len(found) == (not leads)
    assert all(text.startswith("report_to=tensorboard, wandb does not get") for text in found)


def test_quantiles_are_over_all_layers() -> None:
    structure = SimpleNamespace(
        kinds=("heads", "channels"),
        of_kind=lambda kind: [SimpleNamespace(name=f"{layer}.{kind}") for layer in range(2)],
    )
    scores = {"0.heads": torch.arange(6.0).flip(0), "1.heads": torch.arange(6.0, 11.0)}
    assert importance_quantiles(structure, scores) == {
        "importance/heads/q10": 1.0,
        "importance/heads/q50": 5.0,
        "importance/heads/q90": 9.0,
    }


def test_errors_of_a_cut_are_means_over_the_layers() -> None:
    errors = (
        ConsumerError(dimension="0.heads", kind="heads", layer=0, cut=0.2, repaired=0.1),
        ConsumerError(dimension="1.heads", kind="heads", layer=1, cut=0.4, repaired=None),
        ConsumerError(dimension="0.channels", kind="channels", layer=0, cut=0.5, repaired=None),
    )
    record = CutRecord(3, 0.5, {}, {"heads": 0.25}, errors)
    assert cut_values(record) == pytest.approx(
        {
            "stability/heads": 0.25,
            "refit_error/heads/cut": 0.3,
            "refit_error/heads/repaired": 0.1,
            "refit_error/channels/cut": 0.5,
        }
    )
