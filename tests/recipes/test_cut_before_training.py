"""Prune first, then tune, in one command: the same as pruning without training and recovery one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import write_texts
from tests.finished_run import QUICK
from tests.models import logits_of, tiny_model, token_ids
from tests.pruning.criteria import STRUCTURED_METHODS
from tests.pruning.runs import STEPS, adapted_model, byte_model, pruning_config, rows, train
from tests.pruning.test_own_criterion import Counting
from transformers import TrainerCallback

import loraprune
from loraprune import OneshotConfig, Pruner, PruningCallback, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.pruning.errors import InterruptedRunError

OPTIONS: dict[str, Any] = {"eval_sequences": 0, "latency": False, "report": False}
CRITERIA = tuple(name for name in STRUCTURED_METHODS if name != "position")


def first(**changes: Any) -> PruningConfig:
    return PruningConfig(**{"ratio": 0.5, "prune_start": 0.0, "cuts": 1, "calibration_sequences": 8, **changes})


@pytest.mark.parametrize(
    ("criterion", "further"),
    [
        *((name, {}) for name in CRITERIA),
        ("osscar", {"repair": "refit"}),
        ("osscar", {"allocation": "measured"}),
        ("flap", {"repair": "bias"}),
        ("fisher", {"repair": "none", "allocation": "balanced"}),
        ("taylor", {"taylor_form": "first", "allocation": "global"}),
        ("wanda", {"cuts": 3}),
    ],
)
def test_it_equals_oneshot_and_recover_bit_for_bit(
    criterion: str, further: dict[str, Any], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    held_out = write_texts(tmp_path / "held_out.jsonl", 4)
    same = {"criterion": criterion, "allocation": "uniform", "repair": "stream", **further}
    options = {**OPTIONS, "eval_data": held_out}
    together = prune(
        checkpoint,
        data,
        first(**same, prune_end=0.0),
        training=QUICK,
        options=RunOptions(output=tmp_path / "together", **options),
    )
    oneshot(
        checkpoint,
        data,
        OneshotConfig(ratio=0.5, calibration_sequences=8, max_length=QUICK["max_length"], norm_steps=0, **same),
        options=RunOptions(output=tmp_path / "cut", **options),
    )
    recover(tmp_path / "cut", data, training=QUICK, options=RunOptions(output=tmp_path / "apart", **options))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("together", "apart"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("together", "apart")]
    assert configs[0] == configs[1]
    (cut,) = together.record["metrics"]["pruning"]["cuts"]
    assert cut["step"] == 0
    assert together.plan.ratio(together.structure) == pytest.approx(0.5, abs=0.06)
    assert together.record["metrics"]["steps"] == QUICK["max_steps"]


def test_an_interrupted_run_goes_on_after_its_cut(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    whole = prune(checkpoint, data, first(), training=QUICK, options=RunOptions(output=tmp_path / "whole", **OPTIONS))

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    given = {"training": {**QUICK, "save_steps": 1}}
    with pytest.raises(InterruptedRunError):
        prune(
            checkpoint,
            data,
            first(),
            **given,
            options=RunOptions(output=tmp_path / "out", **OPTIONS),
            callbacks=[Stop()],
        )
    resumed = prune(
        checkpoint, data, first(), **given, options=RunOptions(output=tmp_path / "out", resume=True, **OPTIONS)
    )
    assert resumed.plan == whole.plan
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_a_trainers_callback_and_a_loop_cut_first_too(tmp_path: Path) -> None:
    callback = PruningCallback(first(criterion="osscar"))
    outcome = train(tmp_path, [callback])
    assert callback.run is not None
    assert [record.step for record in callback.run.records] == [0]
    assert sum(outcome.losses[-3:]) < sum(outcome.losses[:3])
    ids = torch.tensor(rows()["input_ids"][:8])
    model = adapted_model()
    pruner = Pruner(model, first(criterion="osscar"), total_steps=STEPS, calibration=ids)
    assert pruner.ratio == pytest.approx(0.5, abs=0.06)
    state = pruner.state_dict()
    again = adapted_model()
    other = Pruner(again, first(criterion="osscar"), total_steps=STEPS, calibration=ids)
    other.load_state_dict(state)
    assert other.plan == pruner.plan


def test_an_own_criterion_scores_before_the_first_step(tmp_path: Path) -> None:
    model, ids = tiny_model(), token_ids(4, 12)
    pruner = Pruner(model, first(criterion=Counting(), repair="none"), total_steps=2, calibration=ids)
    for dimension in pruner.structure:
        kept = pruner.plan.kept[dimension.name]
        assert kept == tuple(range(dimension.num_groups - len(kept), dimension.num_groups))
    pruner.end()
    expected = logits_of(model, ids)
    loraprune.save(model, tmp_path / "out")
    torch.testing.assert_close(logits_of(loraprune.load(tmp_path / "out"), ids), expected, atol=1e-4, rtol=1e-4)


def test_when_cuts_are_made_by_default() -> None:
    assert PruningConfig().prune_end == 0.3
    assert PruningConfig(prune_start=0.0).prune_end == 0.3
    assert first().cuts_first
    assert not first(prune_end=0.3).cuts_first
    assert not first(criterion="lora").cuts_first
    assert PruningConfig.from_saved(first().to_saved()) == first()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "lora", "prune_end": 0.0}, "a trained adapter"),
        ({"criterion": "compresso", "prune_end": 0.0}, "learns its gates up to the cut"),
        ({"criterion": "pst", "prune_end": 0.0}, "learns its scores while the adapter is trained"),
        ({"criterion": "osscar", "prune_end": 0.3}, "Cut once, before the first step"),
        ({"apply": "mask", "repair": "none", "prune_end": 0.0}, "Masks have no use"),
        ({"cut_every": 2, "prune_end": 0.0}, "Pass cuts instead of cut_every"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first(**changes)


def test_a_quantized_base_is_refused_before_it_is_loaded(checkpoint: Path, data: Path) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="set --prune-end above 0"):
        prune(checkpoint, data, first(), training=QUICK, options=RunOptions(quantization="torchao-int8", **OPTIONS))


def test_a_model_that_is_cut_first_needs_data_for_its_scores() -> None:
    with pytest.raises(ValueError, match="scores before the first step, need calibration data"):
        Pruner(byte_model(), first(repair="none"), total_steps=2)
    Pruner(
        byte_model(),
        pruning_config(prune_start=0.0, prune_end=0.0, repair="none", criterion="magnitude"),
        total_steps=2,
    )
