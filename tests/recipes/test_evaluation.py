"""Evaluations during training: what they measure, when they stop a run, and which adapter they keep."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.finished_run import CONFIG, QUICK
from tests.thinned import thinned
from transformers import TrainerCallback

from loraprune import PruneResult, PruningConfig, RunOptions, prune, recover
from loraprune.pruning.errors import InterruptedRunError
from loraprune.recipes.steps import evaluation
from loraprune.record.report_data import EvaluationPoint
from loraprune.tasks.causal_lm import CausalLM

TRAINING = {**QUICK, "max_steps": 12, "learning_rate": 1e-2, "save_steps": 3}
OPTIONS = RunOptions(eval_sequences=4, latency=False, report=False, verify=False, eval_steps=2)
EARLY = PruningConfig(ratio=0.5, calibration_sequences=8, criterion="magnitude", prune_end=0.25, cuts=1)  # at step 3


def steps(result: PruneResult) -> list[int]:
    return [point.step for point in points(result)]


def points(result: PruneResult) -> tuple[EvaluationPoint, ...]:
    return result.run_record.metrics.evaluations or ()


def state(result: PruneResult) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has evaluations during training find these losses, one after the other."""

    measure = CausalLM.quality

    def found(values: Iterable[float]) -> None:
        queue = list(values)

        def quality(self: Any, model: Any, held_out: Any, processor: Any) -> dict[str, Any]:
            measured = measure(self, model, held_out, processor)
            in_training = any("lora" in name for name, _ in model.named_parameters())
            return {**measured, "perplexity": math.exp(queue.pop(0))} if in_training else measured

        monkeypatch.setattr(CausalLM, "quality", quality)

    return found


@pytest.mark.parametrize("criterion", thinned(["fisher", "wanda", "lora", "taylor", "flap", "pst", "compresso"], 1))
def test_a_run_with_evaluations_ends_bit_for_bit_as_one_without(criterion: str, checkpoint: Path, data: Path) -> None:
    config = CONFIG.changed(criterion=criterion) if criterion != "pst" else PruningConfig(criterion="pst", ratio=0.5)
    plain = prune(checkpoint, data, config, training=TRAINING, options=replace(OPTIONS, eval_steps=None))
    seen = prune(checkpoint, data, config, training=TRAINING, options=OPTIONS)
    assert same(state(plain), state(seen))
    assert steps(seen) == [2, 4, 6, 8, 10, 12]
    assert plain.run_record.metrics.history is not None
    assert seen.run_record.metrics.history is not None
    logged = [[point.loss for point in run.run_record.metrics.history or ()] for run in (plain, seen)]
    assert logged[0] == logged[1]


@pytest.mark.full
def test_the_last_evaluation_measures_what_the_run_measures_in_the_end(checkpoint: Path, data: Path) -> None:
    heard: list[dict[str, float]] = []

    class Hears(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append(dict(logs))

    options = replace(OPTIONS, eval_steps=5)
    result = prune(checkpoint, data, EARLY, training=TRAINING, options=options, callbacks=[Hears()])
    assert steps(result) == [5, 10, 12]
    last, record = points(result)[-1], result.run_record.metrics
    assert last.perplexity == pytest.approx(record.pruned.perplexity, rel=1e-3)
    assert last.loss == pytest.approx(math.log(last.perplexity or 0.0))
    assert [logs["eval_perplexity"] for logs in heard if "eval_perplexity" in logs][-1] == last.perplexity
    assert [point.step for point in result.report.evaluations] == [5, 10, 12]


def test_training_stops_after_evaluations_without_improvement_and_never_before_the_last_cut(
    checkpoint: Path, data: Path, losses: Any
) -> None:
    losses([1.0, 3.0, 2.0, 2.5, 2.0, 9.0])  # at 2, before the cut at 3; then at 4, 6, 8, 10
    options = replace(OPTIONS, early_stopping_patience=2)
    result = prune(checkpoint, data, EARLY, training=TRAINING, options=options)
    assert steps(result) == [2, 4, 6, 8, 10]
    assert [point.after_cuts for point in points(result)] == [False, True, True, True, True]
    assert result.run_record.metrics.steps == 10
    assert not any(point.taken for point in points(result))


def test_the_best_adapter_after_the_last_cut_is_kept(checkpoint: Path, data: Path, losses: Any) -> None:
    options = replace(OPTIONS, eval_steps=4)
    losses([9.0, 9.0, 9.0])
    stopped = prune(checkpoint, data, EARLY, training={**TRAINING, "lr_scheduler_type": "constant"}, options=options)
    at_8: dict[str, torch.Tensor] = {}

    class Sees(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                at_8.update({n: p.detach().clone() for n, p in kwargs["model"].named_parameters() if p.requires_grad})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at_end.update({n: p.detach().clone() for n, p in kwargs["model"].named_parameters() if n in at_8})

    at_end: dict[str, torch.Tensor] = {}
    losses([5.0, 2.0, 3.0])
    kept = prune(
        checkpoint,
        data,
        EARLY,
        training={**TRAINING, "lr_scheduler_type": "constant"},
        options=replace(options, load_best=True),
        callbacks=[Sees()],
    )
    assert [point.taken for point in points(kept)] == [False, True, False]
    assert at_8
    assert same(at_8, at_end)
    assert not same(state(stopped), state(kept))


class Stops(TrainerCallback):
    """Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.full
@pytest.mark.parametrize("stop", [7, 10, 4])
@pytest.mark.parametrize("patience", [2, None])
def test_a_run_that_is_resumed_stops_at_the_same_step_with_the_same_adapter(
    stop: int, patience: int | None, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    training = {**TRAINING, "learning_rate": 0.3, "logging_steps": 1}  # so high that later steps are no better
    options = replace(OPTIONS, early_stopping_patience=patience, load_best=True)
    whole = prune(checkpoint, data, EARLY, training=training, options=replace(options, output=tmp_path / "whole"))
    parts = replace(options, output=tmp_path / "parts")
    if stop < (whole.run_record.metrics.steps or 0):
        with pytest.raises(InterruptedRunError):
            prune(checkpoint, data, EARLY, training=training, options=parts, callbacks=[Stops(stop)])
        parts = replace(parts, resume=True)
    again = prune(checkpoint, data, EARLY, training=training, options=parts)
    assert [replace(p, seconds=None) for p in points(again)] == [replace(p, seconds=None) for p in points(whole)]
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert same(*found)


@pytest.mark.full
def test_a_run_that_had_stopped_early_goes_on_with_measuring(
    checkpoint: Path, data: Path, tmp_path: Path, losses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraprune.recipes import prune as recipe

    options = replace(OPTIONS, output=tmp_path / "out", early_stopping_patience=1, load_best=True)

    def fails(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    losses([9.0, 1.0, 2.0])
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "finished_model", fails)
        with pytest.raises(InterruptedRunError):
            prune(checkpoint, data, EARLY, training=TRAINING, options=options)
    losses([])  # nothing is evaluated again
    result = prune(checkpoint, data, EARLY, training=TRAINING, options=replace(options, resume=True))
    assert steps(result) == [2, 4, 6]
    assert [point.taken for point in points(result)] == [False, True, False]
    assert not (tmp_path / "out.run").exists()


@pytest.mark.full
def test_recovery_is_evaluated_too(checkpoint: Path, data: Path) -> None:
    result = recover(checkpoint, data, training={**TRAINING, "max_steps": 4}, options=replace(OPTIONS, load_best=True))
    assert steps(result) == [2, 4]
    assert sum(point.taken for point in points(result)) == 1


def test_evaluations_need_rows_and_comparing_needs_evaluations(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="eval-steps is 2, and no rows are held out"):
        prune(checkpoint, data, EARLY, training=TRAINING, options=replace(OPTIONS, eval_sequences=0))
    for given in ({"load_best": True}, {"early_stopping_patience": 2}):
        with pytest.raises(ValueError, match="Add --eval-steps"):
            RunOptions(**given)
    with pytest.raises(ValueError, match="Say --eval-steps N"):
        prune(checkpoint, data, EARLY, training={**TRAINING, "eval_steps": 2}, options=OPTIONS)


@pytest.mark.full
def test_a_checkpoint_of_an_older_version_has_no_evaluations(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, output=tmp_path / "out", keep_run=True)
    prune(checkpoint, data, EARLY, training=TRAINING, options=options)
    folder = tmp_path / "out.run" / "checkpoint-12"
    kept = json.loads((folder / evaluation.EVALUATIONS_FILE).read_text())
    assert [point["step"] for point in kept["points"]] == [2, 4, 6, 8, 10, 12]
    (folder / evaluation.EVALUATIONS_FILE).unlink()
    again = replace(options, resume=True, overwrite=False, output=tmp_path / "other")
    (tmp_path / "out.run").rename(tmp_path / "other.run")
    assert steps(prune(checkpoint, data, EARLY, training=TRAINING, options=again)) == []
