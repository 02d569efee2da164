from __future__ import annotations

import copy
import itertools

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tests.models import PROJECTIONS, factors, logits_of, projections, tiny_model, token_ids, with_lora
from tests.zoo.decoders import ROWS as DECODERS
from tests.zoo.experts import ROWS as MIXTURES
from tests.zoo.row import adapted, structure_of
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from loraprune.checkpoint.save import finish
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.sparsity.masked_lora import ZeroKeepingLinear, keep_zeros_
from loraprune.structure.plan import Plan

IDS = token_ids()
GPT2 = next(row for row in DECODERS if row.name == "gpt2")


def n_of_m(weight: torch.Tensor) -> torch.Tensor:
    """Whether an entry is one of the two largest of four neighbors in its row."""
    fours = weight.abs().unflatten(-1, (-1, 4))
    return (fours >= fours.topk(2, -1).values[..., -1:]).flatten(-2)


def unstructured(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs() > weight.abs().median()


@torch.no_grad()
def sparsify_(model: nn.Module, mask=n_of_m) -> nn.Module:
    """Zero half of each linear layer in the decoder blocks, and of each stack of experts."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            linear = isinstance(module, nn.Linear | Conv1D) and parameter.ndim == 2
            if (linear and parameter.shape[0] != model.config.vocab_size) or parameter.ndim == 3:
                parameter.mul_(mask(parameter))
    return model


def sparse_llama(mask=n_of_m, *, dtype=torch.float32, **lora) -> PeftModel:
    return with_lora(sparsify_(tiny_model(dtype=dtype), mask), **lora)


def sparse_gpt2() -> PeftModel:
    model = sparsify_(GPT2.model(), unstructured)
    return adapted(model, structure_of(model, ("heads", "channels")))


def sparse_mixture(row) -> PeftModel:
    model = sparsify_(row.model(), unstructured)
    return adapted(model, structure_of(model, None))


MODELS = {
    "llama, 2:4": sparse_llama,
    "llama, unstructured": lambda: sparse_llama(unstructured),
    "gpt2": sparse_gpt2,
    **{row.name: lambda row=row: sparse_mixture(row) for row in MIXTURES},
}
any_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def adapted_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of each adapted base weight, by its name in a model without adapters."""
    weights = {}
    for name, module in base_model(model).named_modules():
        if hasattr(module, "lora_A"):
            parameter = getattr(module, "parameter_name", "weight")
            weight = getattr(base_layer(module), parameter).detach().clone()
            weights[f"{name}.{parameter}".replace(".base_layer", "")] = weight
    return weights


def zeros(weights: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int((weight == 0).sum()) for name, weight in weights.items()}


def values_of(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of these names in a merged model."""
    return {name: model.get_parameter(name).detach() for name in weights}


def linear(adapters=("default",), **lora) -> ZeroKeepingLinear:
    """One guarded layer, 32 to 24, in 64 bits, with its adapters active."""
    model = sparse_llama(unstructured, dtype=torch.float64, **lora)
    for rank, name in enumerate(adapters[1:], 2):
        model.add_adapter(name, LoraConfig(r=rank, target_modules=["gate_proj"], init_lora_weights=False))
    model.base_model.set_adapter(list(adapters))
    keep_zeros_(model)
    return projections(model, 0)["gate_proj"]


def inputs(width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 5, width, generator=generator, dtype=torch.float64).requires_grad_()


def reference(layer, x: torch.Tensor, adapters=("default",)) -> torch.Tensor:
    weight = base_layer(layer).weight
    update = 0
    for name in adapters:
        a, b = factors(layer, name)
        update = update + layer.scaling[name] * (b @ a)
    return F.linear(x, (weight + update) * (weight != 0))


class TestForward:
    @pytest.mark.parametrize("listened", [False, True], ids=["in one product", "in two products"])
    @pytest.mark.parametrize("adapters", [("default",), ("default", "second")], ids=len)
    def test_value_and_gradients_are_those_of_the_masked_weight(self, adapters, listened) -> None:
        layer = linear(adapters)
        if listened:
            calls = []
            layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
        x = inputs()
        leaves = [x, *(factor for name in adapters for factor in factors(layer, name))]
        actual, expected = layer(x), reference(layer, x, adapters)
        torch.testing.assert_close(actual, expected)
        for ours, theirs in zip(
            torch.autograd.grad(actual.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
        assert not listened or calls == [1]

    def test_dropout_is_on_what_the_update_sees(self) -> None:
        layer, x = linear(lora_dropout=0.5).train(), inputs()
        torch.manual_seed(0)
        actual = layer(x)
        torch.manual_seed(0)
        dropped = layer.lora_dropout["default"](x)
        base = base_layer(layer)
        torch.testing.assert_close(actual, reference(layer, dropped) + base(x - dropped))
        torch.testing.assert_close(layer.eval()(x), reference(layer, x))

    @pytest.mark.parametrize("bias", ["none", "lora_only"])
    def test_biases_are_added(self, bias) -> None:
        model = with_lora(sparsify_(tiny_model("qwen2")), target_modules=["q_proj"], lora_bias=bias == "lora_only")
        keep_zeros_(model)
        layer = projections(model, 0)["q_proj"]
        x = inputs().float()
        expected = reference(layer, x) + base_layer(layer).bias
        if bias == "lora_only":
            expected = expected + layer.scaling["default"] * layer.lora_B["default"].bias
        torch.testing.assert_close(layer(x), expected)

    def test_factors_in_32_bits_work_on_a_base_in_16(self) -> None:
        model = get_peft_model(
            sparsify_(tiny_model(dtype=torch.bfloat16)),
            LoraConfig(r=3, target_modules=list(PROJECTIONS), init_lora_weights=False),
        )
        keep_zeros_(model)
        layer = projections(model, 0)["up_proj"]
        a, b = factors(layer)
        x = inputs().bfloat16()
        assert (a.dtype, layer(x).dtype) == (torch.float32, torch.bfloat16)
        weight = base_layer(layer).weight.float()
        expected = F.linear(x.float(), (weight + layer.scaling["default"] * (b @ a)) * (weight != 0))
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.05)
        logits = model(input_ids=IDS, use_cache=False).logits
        logits.float().square().mean().backward()
        assert a.grad.dtype == torch.float32
        assert a.grad.abs().max() > 0

    def test_autocast_changes_the_precision_alone(self) -> None:
        model = sparse_llama()
        keep_zeros_(model)
        layer, x = projections(model, 0)["gate_proj"], inputs().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = layer(x)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.float(), reference(layer, x), rtol=0.02, atol=0.05)

    @pytest.mark.parametrize("autocast", [False, True], ids=["stored in 16 bits", "autocast"])
    def test_updates_far_smaller_than_the_weights_are_not_lost_in_16_bits(self, autocast) -> None:
        """Half of the weights are 1 and half -1, so that the output is that of an update of 2⁻¹² on each."""
        model = sparse_llama(dtype=torch.float32 if autocast else torch.bfloat16)
        keep_zeros_(model)
        layer = projections(model, 0)["gate_proj"]
        signs = torch.tensor([1.0, -1.0]).repeat(16)
        signs[:2] = 0.0
        base_layer(layer).weight.data.copy_(signs.expand(24, 32))
        a, b = factors(layer)
        a.data.fill_(2**-12 / (len(a) * layer.scaling["default"]))
        b.data.fill_(1.0)
        x = torch.ones(1, 32, dtype=base_layer(layer).weight.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            actual = layer(x)
        torch.testing.assert_close(actual.float(), torch.full((1, 24), 30 * 2**-12), rtol=0.01, atol=0.0)

    @any_model
    def test_the_update_is_the_same_one_under_autocast(self, make) -> None:
        model = make()
        keep_zeros_(model)
        layers = [module for module in model.modules() if hasattr(module, "lora_A")]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            updates = [layer.get_delta_weight("default") for layer in layers]
        for layer, update in zip(layers, updates, strict=True):
            assert torch.equal(update, layer.get_delta_weight("default"))

    @any_model
    def test_disabled_adapters_leave_the_base(self, make) -> None:
        model = make()
        with model.disable_adapter():
            expected = logits_of(model, IDS)
        keep_zeros_(model)
        assert (logits_of(model, IDS) - expected).abs().max() > 1e-3
        with model.disable_adapter():
            assert torch.equal(logits_of(model, IDS), expected)

    @any_model
    def test_the_update_is_felt_and_so_is_its_mask(self, make) -> None:
        plain = make()
        guarded = copy.deepcopy(plain)
        assert keep_zeros_(guarded) == len(adapted_weights(guarded))
        assert (logits_of(plain, IDS) - logits_of(guarded, IDS)).abs().max() > 1e-3

    def test_without_zeros_the_layers_stay_plain(self) -> None:
        model = with_lora(tiny_model())
        expected = logits_of(model, IDS)
        assert keep_zeros_(model) == 0
        assert torch.equal(logits_of(model, IDS), expected)
        assert not any(isinstance(module, ZeroKeepingLinear) for module in model.modules())

    def test_one_sparse_layer_among_others_is_guarded_alone(self) -> None:
        model = with_lora(tiny_model())
        with torch.no_grad():
            base_layer(projections(model, 1)["v_proj"]).weight[0, 0] = 0
        assert keep_zeros_(model) == 1
        assert isinstance(projections(model, 1)["v_proj"], ZeroKeepingLinear)
        assert keep_zeros_(model) == 1


class TestMerging:
    @any_model
    def test_plain_lora_fills_the_zeros_and_ours_keeps_them(self, make) -> None:
        plain = make()
        before = adapted_weights(plain)
        assert all(count > 0 for count in zeros(before).values())
        guarded = copy.deepcopy(plain)
        keep_zeros_(guarded)
        assert sum(zeros(values_of(plain.merge_and_unload(), before)).values()) < sum(zeros(before).values()) / 100
        for name, merged in values_of(guarded.merge_and_unload(), before).items():
            assert torch.equal(merged == 0, before[name] == 0)
            assert not torch.equal(merged, before[name])

    @any_model
    @pytest.mark.parametrize("safe", [False, True])
    def test_merged_equals_unmerged(self, make, safe) -> None:
        model = make()
        keep_zeros_(model)
        expected = logits_of(model, IDS)
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits_of(model.merge_and_unload(), IDS), expected, rtol=1e-4, atol=1e-4)

    @any_model
    def test_unmerging_gives_the_base_back(self, make) -> None:
        model = make()
        keep_zeros_(model)
        before, expected = adapted_weights(model), logits_of(model, IDS)
        model.merge_adapter()
        model.unmerge_adapter()
        for name, weight in adapted_weights(model).items():
            torch.testing.assert_close(weight, before[name], rtol=0.0, atol=1e-6)
            assert torch.equal(weight == 0, before[name] == 0)
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-4, atol=1e-4)

    def test_an_entry_that_the_update_cancels_is_not_taken_for_a_pruned_one(self) -> None:
        layer = linear()
        weight = base_layer(layer).weight.data
        row, column = (weight != 0).nonzero()[0].tolist()
        weight[row, column] = -layer.get_delta_weight("default")[row, column].detach()
        before = weight.clone()
        layer.merge()
        assert base_layer(layer).weight[row, column] == 0
        layer.unmerge()
        torch.testing.assert_close(base_layer(layer).weight.data, before)

    def test_an_entry_that_rounding_takes_in_a_merge_stays_a_kept_one(self) -> None:
        layer = linear()
        weight = base_layer(layer).weight.data
        row, column = (weight != 0).nonzero()[0].tolist()
        weight[row, column] = 1e-30
        pattern = weight != 0
        layer.merge()
        layer.unmerge()
        assert torch.equal(base_layer(layer).weight != 0, pattern)
        torch.testing.assert_close(layer(inputs()), reference(layer, inputs()))

    def test_a_second_adapter_is_merged_under_the_mask_of_the_base(self) -> None:
        model = sparse_llama()
        model.add_adapter("second", LoraConfig(r=2, target_modules=list(PROJECTIONS), init_lora_weights=False))
        keep_zeros_(model)
        model.base_model.set_adapter(["default", "second"])
        before, expected = adapted_weights(model), logits_of(model, IDS)
        layer = projections(model, 0)["gate_proj"]
        dense = reference(layer, torch.eye(32), ("default", "second")).T
        model.merge_adapter(["default"])
        model.merge_adapter(["second"])
        torch.testing.assert_close(base_layer(layer).weight, dense, rtol=1e-5, atol=1e-6)
        assert zeros(adapted_weights(model)) == zeros(before)
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-4, atol=1e-4)

    def test_an_entry_that_the_first_adapter_cancels_is_there_for_the_second(self) -> None:
        layer = linear(("default", "second"))
        weight = base_layer(layer).weight.data
        row, column = (weight != 0).nonzero()[0].tolist()
        first, second = (layer.get_delta_weight(name)[row, column].item() for name in ("default", "second"))
        weight[row, column] = -first
        layer.merge(adapter_names=["default"])
        assert weight[row, column] == 0
        layer.merge(adapter_names=["second"])
        assert weight[row, column].item() == pytest.approx(second)

    def test_after_an_unmerge_the_mask_follows_the_weight_again(self) -> None:
        layer = linear()
        layer.merge()
        layer.unmerge()
        base_layer(layer).weight.data[0].zero_()
        delta = layer.get_delta_weight("default")
        assert not delta[0].any()
        assert delta[1].any()

    def test_after_a_failed_merge_the_mask_follows_the_weight_again(self) -> None:
        layer = linear()
        b = factors(layer)[1].data
        kept = b.clone()
        b.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            layer.merge(safe_merge=True)
        b.copy_(kept)
        base_layer(layer).weight.data[0].zero_()
        delta = layer.get_delta_weight("default")
        assert not delta[0].any()
        assert delta[1].any()

    @pytest.mark.parametrize("base", [torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
    def test_an_exported_weight_is_the_masked_sum_in_32_bits_rounded_once(self, base, dtype) -> None:
        model = sparse_llama(dtype=base)
        keep_zeros_(model)
        down = projections(model, 1)["down_proj"]
        weight, (a, b) = base_layer(down).weight.float(), (factor.float() for factor in factors(down))
        expected = ((weight + (b @ a) * down.scaling["default"]) * (weight != 0)).to(dtype or base)
        structure = structure_of(model, None)
        merged = finish(model, structure, Plan.full(structure), dtype=dtype)
        assert torch.equal(merged.model.layers[1].mlp.down_proj.weight, expected)

    @any_model
    def test_the_exported_model_computes_what_the_guarded_one_does(self, make) -> None:
        model = make()
        keep_zeros_(model)
        before, expected = adapted_weights(model), logits_of(model, IDS)
        structure = structure_of(model, None)
        merged = finish(model, structure, Plan.full(structure))
        torch.testing.assert_close(logits_of(merged, IDS), expected, rtol=1e-4, atol=1e-4)
        assert zeros(values_of(merged, before)) == zeros(before)


class TestTraining:
    @any_model
    @pytest.mark.parametrize("checkpointing", [None, False, True], ids=["all kept", "recomputed", "reentrant"])
    def test_training_lowers_the_loss_and_keeps_the_zeros(self, make, checkpointing) -> None:
        torch.manual_seed(0)
        model = make().train()
        keep_zeros_(model)
        if checkpointing is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        before = adapted_weights(model)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
        losses = []
        for _ in range(8):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1
        expected = logits_of(model.eval(), IDS)
        merged = model.merge_and_unload()
        assert zeros(values_of(merged, before)) == zeros(before)
        torch.testing.assert_close(logits_of(merged, IDS), expected, rtol=1e-3, atol=1e-3)

    @any_model
    def test_two_forward_passes_before_one_backward_pass_sum_their_gradients(self, make) -> None:
        model = make()
        keep_zeros_(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def loss(ids: torch.Tensor) -> torch.Tensor:
            return model(input_ids=ids, labels=ids, use_cache=False).loss

        first, second = IDS, token_ids(seed=1)
        together = torch.autograd.grad(loss(first) + loss(second), trained)
        apart = zip(torch.autograd.grad(loss(first), trained), torch.autograd.grad(loss(second), trained), strict=True)
        for both, (one, other) in zip(together, apart, strict=True):
            torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("row", MIXTURES, ids=lambda row: row.name)
    def test_gradients_of_stacked_experts_are_those_of_the_masked_weight(self, row) -> None:
        """``W' = W + s·(B·A ⊙ M)``: with G the gradient of W', that of the factors passes through G ⊙ M."""
        model = sparse_mixture(row)
        keep_zeros_(model)
        layers = [m for m in model.modules() if getattr(m, "parameter_name", "") in ("gate_up_proj", "down_proj")]
        assert layers
        labels = {"input_ids": IDS, "labels": IDS, "use_cache": False}
        model(**labels).loss.backward()
        merged = copy.deepcopy(model)
        merged.merge_adapter()
        weights = [base_layer(m) for m in merged.modules() if getattr(m, "parameter_name", "") == "down_proj"]
        for experts in weights:
            experts.down_proj.requires_grad_()
        merged(**labels).loss.backward()
        for layer, experts in zip([m for m in layers if m.parameter_name == "down_proj"], weights, strict=True):
            mask = base_layer(layer).down_proj != 0
            delta = super(ZeroKeepingLinear.__mro__[1], layer).get_delta_weight("default")
            expected = torch.autograd.grad(delta, factors(layer), experts.down_proj.grad * mask)
            for actual, wanted in zip(factors(layer), expected, strict=True):
                torch.testing.assert_close(actual.grad, wanted, rtol=1e-3, atol=1e-5)

    def test_the_frozen_stack_is_the_same_parameter_after_a_forward_pass(self) -> None:
        model = sparse_mixture(MIXTURES[0])
        keep_zeros_(model)
        before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
        logits_of(model, IDS)
        assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == before

    def test_a_trainer_trains_it(self, tmp_path) -> None:
        model = sparse_llama()
        keep_zeros_(model)
        before = adapted_weights(model)
        rows = [{"input_ids": row, "labels": row} for row in token_ids(8)]
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=6, learning_rate=3e-3, report_to=[], logging_steps=1, use_cpu=True
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < losses[0]
        assert zeros(values_of(model.merge_and_unload(), before)) == zeros(before)


class TestSaving:
    @any_model
    def test_a_copy_is_guarded_too(self, make) -> None:
        model = make()
        keep_zeros_(model)
        assert torch.equal(logits_of(copy.deepcopy(model), IDS), logits_of(model, IDS))
        model.merge_adapter()
        twin = copy.deepcopy(model)
        twin.unmerge_adapter()
        model.unmerge_adapter()
        assert torch.equal(logits_of(twin, IDS), logits_of(model, IDS))

    @any_model
    def test_the_adapter_is_saved_as_ever_and_loads_on_the_sparse_base(self, make, tmp_path) -> None:
        plain = make()
        model = copy.deepcopy(plain)
        keep_zeros_(model)
        assert list(model.state_dict()) == list(plain.state_dict())
        expected = logits_of(model, IDS)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make().unload(), tmp_path)
        torch.testing.assert_close(logits_of(loaded, IDS), logits_of(plain, IDS))
        keep_zeros_(loaded)
        torch.testing.assert_close(logits_of(loaded, IDS), expected)


class TestRefusals:
    def refuses(self, model: nn.Module, message: str) -> None:
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=message):
            keep_zeros_(model)
        assert [type(module) for module in model.modules()] == before

    def test_dora_is_refused(self) -> None:
        self.refuses(sparse_llama(use_dora=True), "q_proj: DoraLinearVariant cannot keep zeros.*use_dora=False")

    def test_dora_is_refused_when_it_is_added_later(self) -> None:
        model = sparse_llama()
        keep_zeros_(model)
        with pytest.raises(ValueError, match="DoraLinearVariant cannot keep zeros"):
            model.add_adapter("second", LoraConfig(target_modules=["q_proj"], use_dora=True))

    @pytest.mark.parametrize("init", ["pissa", "olora"])
    def test_an_initialization_that_rewrites_the_base_is_refused(self, init) -> None:
        self.refuses(sparse_llama(init_lora_weights=init), f"'{init}' rewrites the base weights")

    def test_other_adapters_are_refused(self) -> None:
        config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        self.refuses(get_peft_model(sparsify_(tiny_model()), config), "'default' is of type IA3, and only LoRA")

    def test_a_merged_adapter_is_refused(self) -> None:
        model = sparse_llama()
        model.merge_adapter()
        self.refuses(model, r"hides the zeros. Call unmerge_adapter\(\)")

    def test_a_weight_that_is_no_ordinary_tensor_is_refused(self) -> None:
        model = sparse_llama()
        layer = base_layer(projections(model, 1)["k_proj"])
        layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
        self.refuses(model, "layers.1.self_attn.k_proj: the base weight is not an ordinary tensor.*unquantized")

    def test_a_weight_that_is_not_loaded_is_refused(self) -> None:
        self.refuses(with_lora(tiny_model().to("meta")), "not loaded")

    def test_a_base_that_is_trained_itself_is_refused(self) -> None:
        model = sparse_llama()
        base_layer(projections(model, 0)["q_proj"]).weight.requires_grad_()
        self.refuses(model, "q_proj: the base weight is being trained.*Freeze it")

    def test_a_sparse_layer_of_another_kind_is_refused(self) -> None:
        class Convolution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(2, 2, 3)

        model = Convolution()
        model.conv.weight.data[0].zero_()
        self.refuses(get_peft_model(model, LoraConfig(target_modules=["conv"])), "zeros of a Conv2d")

    @pytest.mark.parametrize("make", [sparse_llama, lambda: sparse_mixture(MIXTURES[0])], ids=["linear", "experts"])
    def test_a_batch_for_several_adapters_is_refused(self, make) -> None:
        model = make()
        keep_zeros_(model)
        with pytest.raises(ValueError, match="adapter_names: a batch for several adapters"):
            model(input_ids=IDS, adapter_names=list(itertools.repeat("default", len(IDS))))

    def test_embeddings_are_left_alone(self) -> None:
        model = with_lora(tiny_model(), target_modules=["embed_tokens"])
        model.get_input_embeddings().weight.data[0].zero_()
        assert keep_zeros_(model) == 0
