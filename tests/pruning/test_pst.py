from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.checkpoints import VOCABULARY, byte_model
from tests.models import logits_of, token_ids
from tests.pruning.runs import STEPS, adapted_model, lora_config, train
from tests.thinned import thinned
from tests.zoo.decoders import ROWS as DECODERS
from tests.zoo.row import adapted, structure_of
from torch import nn
from transformers import TrainerCallback

import loraprune
from loraprune import PruningCallback, PruningConfig
from loraprune.importance.configs import Pst
from loraprune.pruning.pst import PstRun
from loraprune.sparsity.pst_layer import PstLinear, pst_layers_
from loraprune.structure.kinds import protected_layers

IDS = token_ids(2, 11, vocabulary=VOCABULARY)
RATIO = 0.6


def pst_config(**changes: Any) -> PruningConfig:
    return PruningConfig(**{"criterion": "pst", "ratio": RATIO, "prune_start": 0.25, "prune_end": 0.5, **changes})


def layers(model: nn.Module) -> Iterator[tuple[str, PstLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PstLinear))


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{number}": tensor.detach().clone()
        for name, layer in layers(model)
        if layer.learnt is not None
        for number, tensor in enumerate(layer.learnt.tensors)
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruningCallback, Any]:
    callback = PruningCallback(pst_config())
    return callback, train(tmp_path_factory.mktemp("pst"), [callback])


def test_every_matrix_reaches_the_exact_share(done: tuple[PruningCallback, Any]) -> None:
    found = dict(layers(done[1].model))
    assert len(found) == 2 * 7
    for layer in found.values():
        assert int((~layer.kept).sum()) == round(RATIO * layer.kept.numel())
        assert layer.learnt is None


def test_the_share_rises_at_every_step_on_a_cubic_curve(done: tuple[PruningCallback, Any]) -> None:
    run = done[0].run
    steps = [record.step for record in run.records]
    assert steps == list(range(round(0.25 * STEPS), round(0.5 * STEPS) + 1))
    expected = [RATIO * (1 - (1 - index / len(steps)) ** 3) for index in range(1, len(steps) + 1)]
    assert [record.ratio for record in run.records] == pytest.approx(expected, abs=0.01)
    assert [point["ratio"] for point in done[0].history][-1] == pytest.approx(RATIO, abs=0.01)


def test_the_forward_pass_is_the_masked_sum(done: tuple[PruningCallback, Any]) -> None:
    for _, layer in layers(done[1].model):
        a, b, scaling = layer.factors()
        x = torch.randn(3, a.shape[1])
        expected = x @ ((layer.get_base_layer().weight + scaling * b @ a) * layer.kept).T
        torch.testing.assert_close(layer(x), expected)


def test_the_adapter_is_saved_as_always(done: tuple[PruningCallback, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done[1].model.save_pretrained(tmp_path)
    assert all("lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_the_share_is_logged_for_every_other_callback(tmp_path: Path) -> None:
    class Logs(TrainerCallback):
        def __init__(self) -> None:
            self.seen: dict[int, float] = {}

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen[state.global_step] = logs.get("sparsity_ratio", self.seen.get(state.global_step))

    callback, watch = PruningCallback(pst_config()), Logs()
    train(tmp_path, [callback, watch])
    assert watch.seen == {point["step"]: point["ratio"] for point in callback.history}


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(learnt(kwargs["model"]))


def test_scores_are_learnt_until_the_last_mask(tmp_path: Path) -> None:
    watch = Watch()
    # First in line sees what a step left before the masks grow.
    train(tmp_path, [watch, PruningCallback(pst_config())])
    last = round(0.5 * STEPS)
    for before, after in zip(watch.seen[1 : last - 1], watch.seen[2:last], strict=True):
        assert all(bool((after[name] != before[name]).any()) for name in before)
    assert all(seen == {} for seen in watch.seen[last:])


def test_scores_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    watch = Watch()
    rate = 1e-5
    config = pst_config(pst=Pst(learning_rate=rate))
    train(tmp_path, [watch, PruningCallback(config)])
    first, second = watch.seen[:2]
    moved = max(float((second[name] - first[name]).abs().max()) for name in first)
    assert 0.0 < moved < 1.5 * rate


def test_merged_equals_unmerged_and_zeros_are_exact(tmp_path: Path) -> None:
    outcome = train(tmp_path, [PruningCallback(pst_config())])
    model = outcome.model.eval()
    masks = {name: layer.kept.clone() for name, layer in layers(model)}
    expected = logits_of(model, IDS)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, IDS), expected, atol=1e-4, rtol=1e-4)
    for name, kept in masks.items():
        weight = merged.get_submodule(name.removeprefix("base_model.model.")).weight
        assert bool((weight[~kept] == 0).all())
        assert int((weight == 0).sum()) == int((~kept).sum())


def test_unmerging_keeps_the_function(tmp_path: Path) -> None:
    model = train(tmp_path, [PruningCallback(pst_config())]).model.eval()
    expected = logits_of(model, IDS)
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-4, rtol=1e-4)


def test_a_disabled_adapter_leaves_the_dense_base(tmp_path: Path) -> None:
    model = train(tmp_path, [PruningCallback(pst_config())]).model.eval()
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model, IDS), logits_of(byte_model().eval(), IDS))


@pytest.mark.parametrize("stop", thinned([4, 2, 9]), ids=["while they grow", "before the masks", "after the last"])
def test_resumed_is_as_uninterrupted(tmp_path: Path, stop: int) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                control.should_save = control.should_training_stop = True

    expected = train(tmp_path / "whole", [PruningCallback(pst_config())], gradient_accumulation_steps=2)
    first = PruningCallback(pst_config())
    first.interrupted = True
    changes = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 100}
    train(tmp_path / "run", [first, Stop()], **changes)
    second = PruningCallback(pst_config())
    model = adapted_model()
    checkpoint = tmp_path / "run" / f"checkpoint-{stop}"
    second.restore_(model, checkpoint)
    resumed = train(tmp_path / "run", [second], resume=checkpoint, model=model, **changes)
    assert resumed.losses == expected.losses
    masks = dict(layers(expected.model))
    for name, layer in layers(resumed.model):
        assert torch.equal(layer.kept, masks[name].kept)
    assert all(torch.equal(value, expected.weights[name]) for name, value in resumed.weights.items())


def test_layers_that_are_kept_stay_dense_and_the_others_make_up_for_them(tmp_path: Path) -> None:
    callback = PruningCallback(pst_config(ratio=0.3, keep_layers=(0,)))
    model = train(tmp_path, [callback]).model
    assert {name.split(".layers.")[1][0] for name, _ in layers(model)} == {"1"}
    assert callback.run.ratio == pytest.approx(0.3, abs=0.001)


def test_more_than_all_of_the_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ratio is 0\.6 of all adapted weights.*Lower the ratio"):
        train(tmp_path, [PruningCallback(pst_config(keep_layers=(0,)))])


def test_a_second_run_goes_on_from_the_masks_of_the_first(tmp_path: Path) -> None:
    model = adapted_model()
    train(tmp_path, [PruningCallback(pst_config(ratio=0.3))], model=model)
    second = PruningCallback(pst_config(ratio=0.6))
    train(tmp_path, [second], model=model)
    assert second.run is not None
    assert second.run.ratio == pytest.approx(0.6, abs=0.01)


def test_a_model_with_two_adapters_is_refused(tmp_path: Path) -> None:
    model = adapted_model()
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(ValueError, match="trains one adapter, but the model has default, other"):
        train(tmp_path, [PruningCallback(pst_config())], model=model)


def test_transposed_layers_are_masked_too() -> None:
    row = next(row for row in DECODERS if row.name == "gpt2")
    base = row.model()
    structure = structure_of(base, ("heads", "channels"))
    model = adapted(base, structure)
    found = pst_layers_(model, structure, Pst(), frozenset(), 0)
    for layer in found.values():
        layer.mask_(0.5)
    expected = logits_of(model.eval(), token_ids())
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, token_ids()), expected, atol=1e-4, rtol=1e-4)
    for name in found:
        weight = merged.get_submodule(name).weight
        assert int((weight == 0).sum()) == round(0.5 * weight.numel())


def test_a_step_with_nan_changes_no_score(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == 2:
                next(p for p in kwargs["model"].parameters() if p.grad is not None).grad.fill_(float("nan"))

    watch, callback = Watch(), PruningCallback(pst_config())
    with pytest.warns(UserWarning, match="Step 2: NaN or Inf"):
        train(tmp_path, [Poison(), watch, callback])
    assert callback.skipped_steps == [2]
    assert all(torch.equal(watch.seen[0][name], watch.seen[1][name]) for name in watch.seen[0])
    assert any(not torch.equal(watch.seen[1][name], watch.seen[2][name]) for name in watch.seen[1])


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_dora": True}, "Leave out use_dora=True"),
            ({"lora_dropout": 0.1}, r"Leave out lora_dropout=0\.1"),
            ({"init_lora_weights": "pissa"}, "Leave out init_lora_weights='pissa'"),
        ],
    )
    def test_other_adapters(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        model = get_peft_model(byte_model(), lora_config(**changes))
        with pytest.raises(ValueError, match=message):
            train(tmp_path, [PruningCallback(pst_config())], model=model)
        assert not list(layers(model))

    def test_fp16(self, tmp_path: Path) -> None:
        callback = PruningCallback(pst_config())
        trainer_model = adapted_model()
        run = PstRun.of(trainer_model, callback.config)
        assert run.ratio == 0.0
        arguments = type("Arguments", (), {"world_size": 1, "load_best_model_at_end": False, "n_gpu": 1, "fp16": True})
        with pytest.raises(ValueError, match="fp16 training is not supported"):
            callback.on_train_begin(arguments(), None, None, model=trainer_model)

    @pytest.mark.parametrize(
        "changes",
        [
            {"allocation": "global"},
            {"dimensions": ("channels",)},
            {"channel_multiple": 8},
            {"head_counts": "any"},
        ],
        ids=str,
    )
    def test_what_speaks_of_groups(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(changes))} is .* an option for groups"):
            pst_config(**changes)

    def test_the_old_name_of_the_callback_for_another_criterion(self) -> None:
        with pytest.warns(FutureWarning, match="PstCallback is PruningCallback now"):
            assert loraprune.PstCallback(pst_config()).config.unstructured
        with pytest.warns(FutureWarning), pytest.raises(ValueError, match="Use PruningCallback"):
            loraprune.PstCallback(PruningConfig())

    def test_options_of_pst_without_it(self) -> None:
        with pytest.raises(ValueError, match="Options of pst were given"):
            PruningConfig(pst=Pst(rank=2))

    def test_every_layer_kept(self) -> None:
        with pytest.raises(ValueError, match="All layers would be kept"):
            protected_layers((0, 1), 2)


def test_a_configuration_survives_json() -> None:
    config = pst_config(pst=Pst(rank=3))
    assert PruningConfig.from_saved(json.loads(json.dumps(config.to_saved()))) == config
