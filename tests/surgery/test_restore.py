from __future__ import annotations

import copy

import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.zoo import ROWS, Row

from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.residual_stream import StreamTargets, stream_readers
from loraprune.layers.unwrap import eval_mode
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import repair_of

SEQUENCES = [token_ids(1, 60, seed=seed)[0] for seed in range(24)]
DECODERS = {row.name: row for row in ROWS if row.name in (
    "llama", "llama with biases, tied", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "phi", "opt", "gptj",
    "starcoder2", "stablelm", "cohere", "falcon, new",
)}  # fmt: skip


def halved(structure, layers=None):
    full = Plan.full(structure)
    dimensions = [d for d in structure if d.num_groups > 1 and (layers is None or d.layer in layers)]
    return full, full.keep({d.name: range(0, d.num_groups, 2) for d in dimensions})


@torch.no_grad()
def error_on_other_text(model, dense):
    """How far the stream of a model ends from the dense model's on sequences that nothing was fitted on."""
    others = [token_ids(1, 60, seed=seed) for seed in range(100, 112)]
    return sum(float((model.model(input_ids=i)[0] - dense.model(input_ids=i)[0]).square().sum()) for i in others)


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def copied(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("row", DECODERS.values(), ids=DECODERS.keys())
def test_on_an_uncut_stream_readers_should_give_what_they_give(row: Row) -> None:
    model = row.model()
    structure = describe(model)
    with eval_mode(model):
        targets = StreamTargets(model, structure, SEQUENCES[:4], readers=True)
        cut = LayerwisePass(model, structure, SEQUENCES[:4])
        for layer in range(len(structure.blocks)):
            targets.begin_block(layer)
            found = [names for writer in targets.writers for names in targets.readers_before(writer)]
            assert sorted(name for names in found for name in names) == sorted(stream_readers(model, structure, layer))
            assert found
            for names in found:
                moment, between, rows = targets.reader_statistics(cut, names)
                assert rows == sum(map(len, SEQUENCES[:4]))
                torch.testing.assert_close(between, moment, rtol=1e-4, atol=1e-5)
            cut.advance()


def test_readers_of_one_tensor_stand_together_before_the_next_writer(llama) -> None:
    structure = describe(llama)
    with eval_mode(llama):
        targets = StreamTargets(llama, structure, SEQUENCES[:2], readers=True)
        targets.begin_block(0)
        names = [
            [[name.rpartition(".")[2] for name in names] for names in targets.readers_before(writer)]
            for writer in targets.writers
        ]
    assert names == [[["q_proj", "k_proj", "v_proj"]], [["gate_proj", "up_proj"]]]


@pytest.fixture
def llama():
    return tiny_model("llama", num_hidden_layers=3)


def test_the_statistics_are_those_of_both_streams(llama) -> None:
    """Golden: from what hooks see in the dense and in the half-cut model, one sequence at a time."""
    dense = copy.deepcopy(llama)
    structure = describe(llama)
    full, first = halved(structure, {0})
    cut_and_repair_(llama, structure, full, first)
    seen: dict[str, list[torch.Tensor]] = {"was": [], "is": []}
    for name, model in (("was", dense), ("is", llama)):
        handle = model.model.layers[1].mlp.up_proj.register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).double())
        )
        with torch.no_grad():
            for ids in SEQUENCES[:5]:
                model(input_ids=ids[None])
        handle.remove()
    was, now = torch.cat(seen["was"]), torch.cat(seen["is"])
    names = ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    with eval_mode(llama):
        targets, cut = StreamTargets(dense, structure, SEQUENCES[:5], readers=True), None
        targets.begin_block(0)
        targets.begin_block(1)
        cut = LayerwisePass(llama, structure, SEQUENCES[:5])
        cut.advance()
        moment, between, rows = targets.reader_statistics(cut, names)
    assert rows == len(now)
    torch.testing.assert_close(moment, (now.T @ now / rows).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(between, (was.T @ now / rows).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_stream_of_other_text_ends_nearer_to_the_dense_models_than_with_writers_alone(family: str) -> None:
    dense = tiny_model(family)
    structure = describe(dense)
    full, plan = halved(structure)
    errors = {}
    for repair in ("stream", "stream+readers"):
        model = copy.deepcopy(dense)
        cut_and_repair_(model, structure, full, plan, calibration=SEQUENCES, repair=repair_of(repair))
        errors[repair] = error_on_other_text(model, dense)
    assert errors["stream+readers"] < 0.97 * errors["stream"]


def test_nothing_before_the_first_cut_changes_and_everything_behind_it_is_restored(llama) -> None:
    before = copied(llama)
    structure = describe(llama, ("channels",))
    full, plan = halved(structure, {1})
    cut_and_repair_(llama, structure, full, plan, calibration=SEQUENCES, repair=repair_of("stream+readers"))
    weights = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    weights += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    behind = {f"model.layers.2.{name}.weight" for name in weights}
    cut = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert changed(llama, before) == behind | cut


def test_layers_that_keep_everything_keep_their_weights() -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    before = copied(model)
    structure = describe(model, keep_layers=(1,))
    full, plan = halved(structure, {0, 2})
    cut_and_repair_(model, structure, full, plan, calibration=SEQUENCES, repair=repair_of("stream+readers"))
    assert not any(".layers.1." in name for name in changed(model, before))


def test_the_adapter_stays_and_base_and_adapter_make_the_restored_weight() -> None:
    import peft

    dense = tiny_model("llama")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(dense, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    merged = copy.deepcopy(adapted).merge_and_unload()
    models = []
    for model in (adapted, merged):
        structure = describe(model)
        full, plan = halved(structure)
        cut_and_repair_(model, structure, full, plan, calibration=SEQUENCES, repair=repair_of("stream+readers"))
        models.append(model.merge_and_unload() if model is adapted else model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_few_tokens_leave_the_readers_alone_rather_than_fit_them_to_noise() -> None:
    dense = tiny_model("llama")
    structure = describe(dense)
    full, plan = halved(structure)
    few = SEQUENCES[:1]
    errors = {}
    for repair in ("none", "stream+readers"):
        model = copy.deepcopy(dense)
        cut_and_repair_(model, structure, full, plan, calibration=few, repair=repair_of(repair))
        errors[repair] = error_on_other_text(model, dense)
    assert errors["stream+readers"] < 1.02 * errors["none"]
