from __future__ import annotations

import copy

import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.pruning.criteria import criterion_of
from tests.zoo import ROWS, Row

from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.residual_stream import NoStreamError, StreamTargets, stream_writers
from loraprune.layers.unwrap import eval_mode
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import CutHooks, cut_and_repair_
from loraprune.surgery.repairs import Refit, Stream, repair_of

SEQUENCES = [token_ids(1, length, seed=length)[0] for length in (9, 13, 9, 20)]
DECODERS = {row.name: row for row in ROWS if row.name in (
    "llama", "llama with biases, tied", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "phi", "opt", "gptj",
    "starcoder2", "stablelm", "cohere", "falcon, new",
)}  # fmt: skip
NO_STREAMS = {row.name: row for row in ROWS if row.name in ("gemma2", "granite", "mixtral", "olmo2")}


def halved(structure):
    full = Plan.full(structure)
    return full, full.keep({d.name: range(0, d.num_groups, 2) for d in structure if d.num_groups > 1})


def inputs_of(model, names, ids):
    """What enters layers (or the model's blocks), and what they give, on one sequence."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, kwargs, output, name=name: seen.__setitem__(
                name, (args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)
            ),
            with_kwargs=True,
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (x[0].double(), y[0].double()) for name, (x, y) in seen.items()}


@pytest.mark.parametrize("row", DECODERS.values(), ids=DECODERS.keys())
def test_on_an_uncut_model_the_target_is_what_the_layer_gives(row: Row) -> None:
    model = row.model()
    structure = describe(model)
    with eval_mode(model):
        targets = StreamTargets(model, structure, SEQUENCES)
        cut = LayerwisePass(model, structure, SEQUENCES)
        for layer in range(len(structure.blocks)):
            targets.begin_block(layer)
            for name in stream_writers(model, structure, layer):
                moment, _, cross, _ = targets.gather(cut, name).both
                consumer = model.get_submodule(name)
                weight = consumer.weight.T if hasattr(consumer, "nf") else consumer.weight
                torch.testing.assert_close(cross, (weight @ moment).detach(), rtol=1e-3, atol=1e-4)
            cut.advance()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_large_stream_in_16_bits_hides_nothing_of_what_is_added(family: str) -> None:
    """A stream may be a hundred times as large as what a block adds; sums of the two in 16 bits would be noise."""
    row = next(row for row in ROWS if row.name == family)
    model = row.model().to(torch.bfloat16)
    structure = describe(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100)
    with eval_mode(model):
        targets, cut = StreamTargets(model, structure, SEQUENCES), LayerwisePass(model, structure, SEQUENCES)
        targets.begin_block(0)
        for name in stream_writers(model, structure, 0):
            moment, _, cross, _ = targets.gather(cut, name).both
            consumer = model.get_submodule(name)
            expected = consumer.weight.float() @ moment
            assert torch.linalg.vector_norm(cross - expected) < 0.01 * torch.linalg.vector_norm(expected), name


@pytest.mark.parametrize("row", NO_STREAMS.values(), ids=NO_STREAMS.keys())
def test_a_block_that_does_more_than_add_is_told(row: Row) -> None:
    model = row.model()
    structure = describe(model)
    with eval_mode(model), pytest.raises(NoStreamError, match=r"do more than add .*first seen in [\w.]+0\)"):
        StreamTargets(model, structure, SEQUENCES).begin_block(0)


@pytest.mark.parametrize("row", NO_STREAMS.values(), ids=NO_STREAMS.keys())
def test_without_a_stream_the_repair_is_the_plain_refit_and_that_is_said(
    row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    models = [row.model(), row.model()]
    structure = describe(models[0])
    full, plan = halved(structure)
    with caplog.at_level("INFO", "loraprune"):
        cut_and_repair_(models[0], structure, full, plan, calibration=SEQUENCES, repair=Stream())
    said = {id(record) for record in caplog.records if "The refit restores each layer's own" in record.getMessage()}
    assert len(said) == 1
    cut_and_repair_(models[1], structure, full, plan, calibration=SEQUENCES, repair=Refit())
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_statistics_are_those_of_both_streams_after_a_cut() -> None:
    """Golden: from what hooks see in the dense and in the half-cut model, one sequence at a time."""
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    dense = copy.deepcopy(model)
    structure = describe(model)
    full, plan = halved(structure)
    first = Plan({**full.kept, **{name: kept for name, kept in plan.kept.items() if name.startswith("layers.0")}})
    cut_and_repair_(model, structure, full, first)
    names = [*structure.blocks, "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"]
    cross, moment, rows = 0.0, 0.0, 0
    for ids in SEQUENCES:
        was, now = inputs_of(dense, names, ids), inputs_of(model, names, ids)
        down = "model.layers.1.mlp.down_proj"
        after = was["model.layers.1"][0] + was[names[2]][1] + was[down][1]
        before = now["model.layers.1"][0] + now[names[2]][1]
        target = after - before - model.get_submodule(down).bias.double()
        x = now[down][0]
        cross, moment, rows = cross + target.T @ x, moment + x.T @ x, rows + len(x)
    with eval_mode(model):
        targets = StreamTargets(dense, structure, SEQUENCES)
        targets.begin_block(0)
        targets.begin_block(1)
        targets._model = model  # the cut one: its biases count
        pass_ = LayerwisePass(model, structure, SEQUENCES)
        pass_.advance()
        actual_moment, _, actual_cross, _ = targets.gather(pass_, "model.layers.1.mlp.down_proj").both
    torch.testing.assert_close(actual_cross, (cross / rows).float().detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual_moment, (moment / rows).float().detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_stream_ends_nearer_to_the_dense_models_than_after_a_plain_refit(family: str) -> None:
    ids = [token_ids(1, 60, seed=seed)[0] for seed in range(24)]
    dense = tiny_model(family)
    structure = describe(dense)
    full, plan = halved(structure)
    errors = {}
    for repair in ("none", "refit", "stream"):
        model = copy.deepcopy(dense)
        cut_and_repair_(model, structure, full, plan, calibration=ids, repair=repair_of(repair))
        with torch.no_grad():
            errors[repair] = sum(
                float((model.model(input_ids=i[None])[0] - dense.model(input_ids=i[None])[0]).square().sum())
                for i in ids
            )
    assert errors["stream"] < errors["refit"] < errors["none"]


class TestOffload:
    """A second device is played by ``meta``, which has no values and cannot be mixed with any other."""

    @pytest.fixture
    def _meta_comes_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        to = torch.Tensor.to

        def back(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            target = next((a for a in args if isinstance(a, torch.device | torch.Tensor)), kwargs.get("device"))
            device = target.device if isinstance(target, torch.Tensor) else target
            if self.is_meta and device is not None and torch.device(device).type == "cpu":
                self = torch.zeros(self.shape, dtype=self.dtype)
            return to(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, "to", back)

    @pytest.mark.usefixtures("_meta_comes_back")
    def test_targets_are_added_up_where_hidden_states_are_kept(self) -> None:
        model = tiny_model()
        structure = describe(model)
        with eval_mode(model):
            targets = StreamTargets(model, structure, SEQUENCES, torch.device("meta"))
            with pytest.raises(NoStreamError):  # zeros came back, and are no stream
                targets.begin_block(0)
        assert all(tensor.device.type == "cpu" for kept in targets._after.values() for tensor in kept)

    @pytest.mark.usefixtures("_meta_comes_back")
    @pytest.mark.parametrize("method", ["wanda", "flap"])
    def test_scores_are_computed_where_the_block_is(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model()
        structure = describe(model)
        devices = []

        def score(weight: torch.Tensor, statistic: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            devices.append((weight.device.type, statistic.device.type, positions.device.type))
            return torch.ones(len(positions))

        monkeypatch.setattr(f"loraprune.importance.{method}.{method}_group_scores", score)
        with eval_mode(model):
            pass_ = LayerwisePass(model, structure, SEQUENCES, torch.device("meta"))
            consumer_scores(criterion_of(method), model, structure.dimensions[0], 4, pass_)
        assert devices == [("meta", "meta", "meta")]


def test_computing_on_a_named_device_changes_nothing() -> None:
    models = [tiny_model(), tiny_model()]
    structure = describe(models[0])
    full, plan = halved(structure)
    for model, device in zip(models, (None, torch.device("cpu")), strict=True):
        cut_and_repair_(
            model, structure, full, plan, calibration=SEQUENCES, repair=Stream(), hooks=CutHooks(device=device)
        )
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
