"""What a run is to reach instead of a ratio, from the option to the saved shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.checkpoints import tiny_checkpoint
from transformers import AutoConfig, TrainerCallback

import loraprune
from loraprune import OneshotConfig, OneshotResult, PruningConfig, RunOptions
from loraprune.cli.shared_options import settle_amount
from loraprune.measure.width_times import WidthTimes
from loraprune.recipes.steps import goals

CHANNELS = 64
"""Of the small checkpoint, which has four KV heads."""

QUICK: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 2, "max_length": 32}


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that follow from the widths alone: a block takes a second, half of it in attention."""

    def time_widths(models: Any, legal: Any, work: Any, **further: Any) -> WidthTimes:
        heads, channels = 4, CHANNELS
        return WidthTimes(
            work="1 × 32 tokens",
            outside=0.0,
            block=1.0,
            blocks=2,
            open=2,
            tables={
                "heads": {count: 0.5 + 0.5 * count / heads for count in range(1, heads + 1)},
                "channels": {count: 0.5 + 0.5 * count / channels for count in range(1, channels + 1)},
            },
        )

    monkeypatch.setattr(goals, "time_widths", time_widths)


class Stops(TrainerCallback):
    """Ends a run after its third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("in the middle")


def cut(checkpoint: Any, data: Path, config: OneshotConfig | None = None, **options: Any) -> OneshotResult:
    settled = RunOptions(**{"eval_sequences": 0, "latency": False, **options})
    config = config or OneshotConfig(ratio=0.5, calibration_sequences=16, max_length=32)
    return loraprune.oneshot(checkpoint, data, config, options=settled)


def widths_of(result: Any) -> dict[str, set[int]]:
    return {kind: set(result.plan.counts(result.structure, kind)) for kind in result.structure.kinds}


def test_named_widths_are_those_of_the_result(checkpoint: Path, data: Path) -> None:
    result = cut(checkpoint, data, OneshotConfig(widths="heads=2,channels=17", calibration_sequences=8, max_length=32))
    assert widths_of(result) == {"heads": {2}, "channels": {17}}
    assert result.model.config.intermediate_size == 17
    pruning = result.metrics["pruning"]
    assert pruning["ratio"] == pruning["target_ratio"]


def test_of_several_widths_the_one_is_taken_that_changes_the_model_least(checkpoint: Path, data: Path) -> None:
    config = OneshotConfig(widths="heads=1,channels=1;heads=4,channels=63", calibration_sequences=16, max_length=32)
    result = cut(checkpoint, data, config)
    assert widths_of(result) == {"heads": {4}, "channels": {63}}
    assert len(result.metrics["pruning"]["trials"]) == 2


@pytest.mark.parametrize("cuts", [1, 3])
def test_cuts_while_tuning_end_at_the_named_widths(cuts: int, checkpoint: Path, data: Path) -> None:
    config = PruningConfig(widths="heads=2,channels=11", cuts=cuts, prune_start=0.1, prune_end=0.8, repair="none")
    options = RunOptions(latency=False, eval_sequences=0)
    result = loraprune.prune(checkpoint, data, config, training=QUICK, options=options)
    assert widths_of(result) == {"heads": {2}, "channels": {11}}


def test_a_size_is_kept_to(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    result = cut(checkpoint, data, target_size=110_000, output=tmp_path / "out")
    finest = sum(d.parameters_per_group for d in result.structure.of_kind("channels"))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert abs(size - 110_000) <= 4 * finest / 2


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_smaller_cache_takes_heads_alone(share: float, checkpoint: Path, data: Path) -> None:
    result = cut(checkpoint, data, target_kv_cache=share)
    assert widths_of(result) == {"heads": {int(4 * share)}, "channels": {CHANNELS}}


def test_a_cache_in_bytes_is_that_of_a_sequence_as_long_as_the_context(checkpoint: Path, data: Path) -> None:
    config = AutoConfig.from_pretrained(checkpoint)
    one_head = 2 * config.num_hidden_layers * config.head_dim * config.max_position_embeddings * 4
    result = cut(checkpoint, data, target_kv_cache=2 * one_head + 1)
    assert widths_of(result)["heads"] == {2}


def test_beside_another_goal_the_cache_bounds_the_heads(checkpoint: Path, data: Path) -> None:
    result = cut(checkpoint, data, target_params=27_000, target_kv_cache=0.5)
    assert max(widths_of(result)["heads"]) <= 2
    finest = sum(d.parameters_per_group for d in result.structure.of_kind("channels"))
    assert abs(result.model.num_parameters() - 27_000) <= finest / 2


@pytest.mark.parametrize("speedup", [1.2, 1.6])
def test_widths_are_fast_enough_and_no_narrower_than_need_be(speedup: float, checkpoint: Path, data: Path) -> None:
    result = cut(checkpoint, data, speedup=speedup)
    ((heads,), (channels,)) = widths_of(result).values()
    seconds = heads / 8 + channels / (2 * CHANNELS)
    assert 1 / seconds >= speedup
    assert 1 / (seconds + 1 / (2 * CHANNELS)) < speedup  # a wider FFN, by one multiple, would not be
    assert f"The goal was a speed-up of {speedup:g} (1 × 32 tokens)" in " ".join(result.report.notes)


def test_the_allocation_chooses_among_fast_widths(checkpoint: Path, data: Path) -> None:
    found = {
        allocation: widths_of(
            cut(
                checkpoint,
                data,
                OneshotConfig(ratio=0.5, allocation=allocation, calibration_sequences=16, max_length=32),
                speedup=1.5,
            )
        )
        for allocation in ("uniform", "balanced", "measured")
    }
    assert found["uniform"]["heads"] == {2}
    for widths in found.values():
        ((heads,), (channels,)) = widths.values()
        assert 1 / (heads / 8 + channels / (2 * CHANNELS)) >= 1.5


def test_tuning_reaches_a_speed_too_and_goes_on_with_the_same_widths(
    tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PruningConfig(ratio=0.5, cuts=2, repair="none", prune_start=0.1, prune_end=0.9)

    out = RunOptions(latency=False, eval_sequences=0, speedup=1.5, output=tmp_path / "out")
    training = {**QUICK, "save_steps": 2}
    with pytest.raises(RuntimeError, match="in the middle"):
        loraprune.prune(checkpoint, data, config, training=training, options=out, callbacks=[Stops()])
    again = replace(out, resume=True, speedup=1.2)
    with pytest.raises(ValueError, match=r"goals: \{'speedup': 1.5\} -> \{'speedup': 1.2\}"):
        loraprune.prune(checkpoint, data, config, training=training, options=again)
    monkeypatch.setattr(WidthTimes, "speedup", lambda self, widths: 1.0)  # now, nothing would be fast enough
    result = loraprune.prune(checkpoint, data, config, training=training, options=replace(out, resume=True))
    ((heads,), (channels,)) = widths_of(result).values()
    assert 1 / (heads / 8 + channels / (2 * CHANNELS)) >= 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 100.0}, "A speed-up of 100 cannot be reached: with the smallest widths, 1 × 32 tokens take"),
        ({"speedup": 1.0}, r"speedup is 1.0; it must lie in \(1, 1000\]"),
        ({"speedup": float("nan")}, "speedup is nan"),
        ({"speedup": 1.5, "target_size": "1MB"}, "target_size and speedup both set the amount to remove"),
        ({"target_kv_cache": 0.1}, "No widths have a KV cache of at most"),
        ({"target_size": "10GB"}, "A target of 2,500,000,000 parameters cannot be met"),
        ({"speedup": 1.5, "speedup_tokens": 10**6}, "speedup_tokens is 1000000, above the context"),
        ({"speedup": 1.5, "speedup_phase": "both"}, "speedup_phase is 'both'; choose one of prefill, decode"),
    ],
    ids=str,
)
def test_what_cannot_be_reached_is_refused(options: dict[str, Any], message: str, checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=message):
        cut(checkpoint, data, **options)


@pytest.mark.parametrize("goal", [{"speedup": 1.5}, {"target_kv_cache": 0.5}, {"target_size": "100kB"}], ids=str)
def test_zeros_and_recovery_have_no_goals(goal: dict[str, Any], checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="a sparsity does not change it"):
        cut(checkpoint, data, OneshotConfig(sparsity=0.5), **goal)
    with pytest.raises(ValueError, match="recovery removes nothing"):
        loraprune.recover(checkpoint, data, training=QUICK, options=RunOptions(**goal))
    with pytest.raises(ValueError, match="does not remove weights"):
        loraprune.prune(checkpoint, data, PruningConfig(criterion="pst"), training=QUICK, options=RunOptions(**goal))


def test_widths_that_differ_from_layer_to_layer_have_no_speed(checkpoint: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="the allocation 'global' varies them"):
        cut(checkpoint, data, OneshotConfig(ratio=0.5, allocation="global"), speedup=1.5)


def test_whole_blocks_can_make_it_faster(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_depth = WidthTimes(work="1 × 32 tokens", outside=0.5, block=1.0, blocks=4, open=4, tables={})
    monkeypatch.setattr(goals, "time_widths", lambda *given, **further: by_depth)
    deep = tiny_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    config = OneshotConfig(ratio=0.5, dimensions=("blocks",), calibration_sequences=8, max_length=32)
    result = cut(deep, data, config, speedup=1.3)
    assert result.model.config.num_hidden_layers == 2  # 3 blocks are 4.5 / 3.5 = 1.29 times as fast


def test_layers_that_keep_everything_count_in_the_cache(tmp_path: Path, data: Path) -> None:
    deep = tiny_checkpoint(tmp_path / "deep", num_hidden_layers=4)
    config = OneshotConfig(ratio=0.5, keep_layers=(0,), calibration_sequences=8, max_length=32)
    result = cut(deep, data, config, target_kv_cache=0.5)
    heads = result.plan.counts(result.structure, "heads")
    assert heads[0] == 4
    assert sum(heads) <= 0.5 * 16


def test_sizes_of_quantized_results_are_not_known(checkpoint: Path, data: Path) -> None:
    options = RunOptions(target_size="100kB", quantization="torchao-int8", keep_quantized=True)
    with pytest.raises(ValueError, match="target_size and speedup are for a result in 16 or 32 bits"):
        loraprune.prune(checkpoint, data, PruningConfig(repair="none"), training=QUICK, options=options)


@pytest.mark.parametrize(
    ("recipe", "given", "left"),
    [
        ({"speedup": 1.5, "target_kv_cache": 0.5}, {"speedup": 2.0}, {"speedup": 2.0, "target_kv_cache": 0.5}),
        ({"speedup": 1.5, "target_kv_cache": 0.5}, {"target_kv_cache": 0.3}, {"speedup": 1.5, "target_kv_cache": 0.3}),
        ({"speedup": 1.5, "target_kv_cache": 0.5}, {"ratio": 0.3}, {"ratio": 0.3}),
        ({"ratio": 0.3}, {"target_kv_cache": 0.3}, {"target_kv_cache": 0.3}),
        ({"ratio": 0.3}, {"target_size": "1MB"}, {"target_size": "1MB"}),
        ({"target_params": 9}, {"target_size": "1MB"}, {"target_size": "1MB"}),
        ({"ratio": 0.3}, {}, {"ratio": 0.3}),
    ],
    ids=str,
)
def test_an_amount_on_the_command_line_replaces_what_it_does_not_go_with(
    recipe: dict[str, Any], given: dict[str, Any], left: dict[str, Any]
) -> None:
    values = recipe | given
    settle_amount(values, given)
    assert values == left
