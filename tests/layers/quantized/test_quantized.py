from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.models import logits_of, projections, sequence_losses, tiny_model, token_ids, with_lora
from tests.quantized_models import WIDTHS, need, plain_folder, quantized
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from loraprune.importance.configs import GROUP_CRITERIA
from loraprune.layers.lora import effective_weight
from loraprune.layers.quantized import (
    UnsupportedQuantizationError,
    exact_weight,
    is_quantized,
    is_quantized_model,
    keep_,
    prepare_,
    quantized_layers,
    set_weight_,
    shape_of,
    source_of,
    stored_bytes,
    weight_rows,
)
from loraprune.layers.quantized.four_bits import whole_blocks
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.masking import masked
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import Refit
from loraprune.surgery.slicing import slice_

KINDS = ("bnb-8bit", "bnb-4bit", "torchao-int8")
IDS = token_ids(3, 9)
SCATTERED = torch.tensor([1, 5, 6, 64, 65, 90, 120])
WHOLE = torch.arange(64, 128)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_folder(tmp_path_factory.mktemp("quantized") / "llama")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


@pytest.fixture
def model(folder: Path, kind: str) -> PreTrainedModel:
    return quantized(folder, kind)


def down(model: PreTrainedModel) -> Any:
    """The layer from 192 channels to 128 features, computing as it does in training."""
    return model.model.layers[0].mlp.down_proj.train()


def by_forward(layer: nn.Module) -> torch.Tensor:
    """The weight that a layer multiplies with, from what it makes of unit vectors."""
    return layer(torch.eye(layer.in_features)).T.detach()


def dequantized_copy(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The same function in 32 bits."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, layer in quantized_layers(model):
        plain.get_submodule(name).weight.data = weight_rows(layer)
    return plain


class TestReading:
    def test_what_is_read_is_what_the_layer_multiplies_with(self, model: PreTrainedModel) -> None:
        layer = down(model)
        assert is_quantized(layer)
        assert shape_of(layer) == (128, 192)
        torch.testing.assert_close(weight_rows(layer), by_forward(layer), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("rows", [slice(0, 5), slice(7, 100), slice(120, 999)])
    def test_a_part_of_the_rows_is_that_part_of_the_whole(self, model: PreTrainedModel, rows: slice) -> None:
        assert torch.equal(weight_rows(down(model), rows), weight_rows(down(model))[rows])

    def test_rows_that_are_no_whole_blocks_are_read_all_the_same(self, tmp_path: Path, kind: str) -> None:
        odd = quantized(plain_folder(tmp_path, intermediate_size=72), kind)
        layer = down(odd)
        torch.testing.assert_close(weight_rows(layer), by_forward(layer), rtol=0, atol=1e-6)
        assert torch.equal(weight_rows(layer, slice(3, 50)), weight_rows(layer)[3:50])

    def test_the_scales_of_int8_are_found_after_a_forward_pass_moved_them(self, folder: Path) -> None:
        layer = down(quantized(folder, "bnb-8bit"))
        before = weight_rows(layer)
        assert layer.weight.SCB is not None
        layer(torch.zeros(1, 192))
        assert layer.weight.SCB is None
        assert torch.equal(weight_rows(layer), before)

    def test_an_ordinary_layer_is_not_quantized(self) -> None:
        assert not is_quantized(nn.Linear(3, 2))
        assert not is_quantized_model(tiny_model())

    def test_the_structure_is_that_of_the_original(self, model: PreTrainedModel, folder: Path) -> None:
        assert describe(model) == describe(AutoModelForCausalLM.from_pretrained(folder))

    def test_its_size_is_that_of_its_tensors_in_a_file(self, model: PreTrainedModel, kind: str, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        file = (tmp_path / "model.safetensors").read_bytes()
        header = 8 + int.from_bytes(file[:8], "little")
        size = stored_bytes(model, 4)
        assert size < sum(value.numel() for value in model.parameters()) * 4
        # bitsandbytes adds a few words to each layer, torchao aligns its tensors.
        assert len(file) - header == pytest.approx(size, abs=256 * len(dict(quantized_layers(model))))


class TestCutting:
    @pytest.mark.parametrize("after_forward", [False, True])
    @pytest.mark.parametrize("index", [SCATTERED, WHOLE])
    def test_rows_are_cut_exactly(self, model: PreTrainedModel, index: torch.Tensor, after_forward: bool) -> None:
        layer = down(model)
        whole = by_forward(layer) if after_forward else weight_rows(layer)
        keep_(layer, 0, index)
        torch.testing.assert_close(weight_rows(layer), whole[index], rtol=0, atol=1e-6 if after_forward else 0)
        assert shape_of(layer) == (len(index), 192)
        assert source_of(layer) is None

    @pytest.mark.parametrize("after_forward", [False, True])
    def test_whole_blocks_of_columns_are_cut_exactly(self, model: PreTrainedModel, after_forward: bool) -> None:
        layer = down(model)
        before = weight_rows(layer)
        if after_forward:
            by_forward(layer)
        keep_(layer, 1, WHOLE)
        layer.in_features = 64
        assert torch.equal(weight_rows(layer), before[:, WHOLE])
        torch.testing.assert_close(by_forward(layer), before[:, WHOLE], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dim", [0, 1])
    @pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
    def test_4_bits_may_be_stored_under_any_dtype(self, folder: Path, storage: torch.dtype, dim: int) -> None:
        need("bnb-4bit")
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage)
        layer = down(quantized(folder, "bnb-4bit", quantization_config=config))
        before = weight_rows(layer)
        keep_(layer, dim, WHOLE)
        assert layer.weight.dtype == storage
        assert torch.equal(weight_rows(layer), before.index_select(dim, WHOLE))

    @pytest.mark.parametrize("quantization", ["bnb-8bit", "torchao-int8"])
    def test_int8_cuts_any_columns_exactly(self, folder: Path, quantization: str) -> None:
        layer = down(quantized(folder, quantization))
        before = weight_rows(layer)
        keep_(layer, 1, SCATTERED)
        assert torch.equal(weight_rows(layer), before[:, SCATTERED])

    def test_other_columns_of_4_bits_are_quantized_anew_within_half_a_step(self, folder: Path) -> None:
        layer = down(quantized(folder, "bnb-4bit"))
        before = weight_rows(layer)[:, SCATTERED]
        keep_(layer, 1, SCATTERED)
        assert torch.equal(exact_weight(layer), before)
        widest = layer.weight.quant_state.code.diff().max() / 2  # of the largest weight in a block
        error = (weight_rows(layer) - before).abs().max()
        assert 0 < error <= before.abs().max() * (widest + 0.01)  # 0.01: the scales are quantized, too

    def test_cuts_that_follow_start_from_what_was_quantized(self, folder: Path) -> None:
        twice, once = down(quantized(folder, "bnb-4bit")), down(quantized(folder, "bnb-4bit"))
        keep_(twice, 1, torch.arange(1, 150))
        keep_(twice, 1, torch.arange(2, 149, 3))
        keep_(once, 1, torch.arange(1, 150)[2:149:3])
        assert torch.equal(weight_rows(twice), weight_rows(once))

    def test_the_blocks_that_positions_make_up(self) -> None:
        assert whole_blocks(torch.tensor([2, 3, 6, 7]), 2).tolist() == [1, 3]  # type: ignore[union-attr]
        assert whole_blocks(torch.tensor([1, 2]), 2) is None
        assert whole_blocks(torch.tensor([0, 1, 2]), 2) is None
        assert whole_blocks(torch.tensor([0, 2]), 2) is None

    def test_a_sliced_model_is_the_masked_one(self, model: PreTrainedModel, kind: str) -> None:
        structure = describe(model)
        # Of 192 channels 64 that are a whole block, so that even 4 bits are cut exactly.
        plan = Plan.full(structure).keep(
            {d.name: [1] if d.kind == "heads" else list(range(64, 128)) for d in structure}
        )
        model = with_lora(model).train()
        with masked(model, structure, plan):
            expected = model(IDS).logits
        slice_(model, structure, Plan.full(structure), plan)
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


class TestWriting:
    def test_another_weight_is_quantized_as_the_library_does(self, folder: Path, tmp_path: Path, kind: str) -> None:
        other = tiny_model("llama", seed=5, **WIDTHS)
        other.save_pretrained(tmp_path)
        layer, expected = down(quantized(folder, kind)), down(quantized(tmp_path, kind))
        by_forward(layer)
        set_weight_(layer, other.model.layers[0].mlp.down_proj.weight)
        assert torch.equal(weight_rows(layer), weight_rows(expected))
        torch.testing.assert_close(by_forward(layer), weight_rows(expected), rtol=0, atol=1e-6)

    def test_what_was_written_is_kept_in_more_bits(self, model: PreTrainedModel) -> None:
        layer, weight = down(model), torch.randn(128, 192)
        set_weight_(layer, weight)
        torch.testing.assert_close(exact_weight(layer), weight, rtol=1e-3, atol=1e-6)
        assert not torch.allclose(weight_rows(layer), weight, rtol=1e-3)


class TestTraps:
    def gradients(self, model: PeftModel) -> list[torch.Tensor]:
        model.zero_grad()
        sequence_losses(model, IDS).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def test_gradients_of_the_adapter_are_right_also_after_an_evaluation(self, folder: Path, kind: str) -> None:
        model = quantized(folder, kind)
        reference = with_lora(dequantized_copy(model, folder)).train()
        adapted = with_lora(model)
        logits_of(adapted.eval(), IDS)
        found, expected = self.gradients(adapted.train()), self.gradients(reference)
        assert len(found) == len(expected) == 28
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm()

    def test_without_preparation_an_evaluation_changes_4_bit_weights_and_that_is_refused(self, folder: Path) -> None:
        model = quantized(folder, "bnb-4bit", prepared=False)
        if not down(model).support_avx512bf16_for_cpu:
            pytest.skip("this CPU has no AVX512-BF16, for which weights are reordered")
        logits_of(model.eval(), IDS)
        with pytest.raises(UnsupportedQuantizationError, match=r"Load the model again and call .*prepare_"):
            prepare_(model)
        with pytest.raises(UnsupportedQuantizationError, match="reordered"):
            weight_rows(down(model))

    def test_dynamic_quantization_of_torchao_is_refused(self, folder: Path) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        from transformers import TorchAoConfig

        config = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
        model = quantized(folder, "torchao-int8", prepared=False, quantization_config=config)
        with pytest.raises(UnsupportedQuantizationError, match="also quantizes activations"):
            prepare_(model)

    def test_other_quantizers_are_refused(self, folder: Path) -> None:
        model = quantized(folder, "bnb-8bit")
        model.config.quantization_config = {"quant_method": "gptq"}
        with pytest.raises(UnsupportedQuantizationError, match="quantized by gptq, which cannot be pruned"):
            prepare_(model)

    def test_models_that_are_not_quantized_need_no_preparation(self) -> None:
        prepare_(tiny_model())

    @pytest.mark.parametrize("columns", [48, 72, 96, 112])
    def test_a_cpu_reads_4_bits_right_whatever_the_length_of_a_row(
        self, folder: Path, tmp_path: Path, columns: int
    ) -> None:
        def reference(layer: Any) -> torch.Tensor:
            state, packed = layer.weight.quant_state, layer.weight.data.reshape(-1)
            scales = state.absmax
            if state.nested:
                nested = state.state2
                scales = nested.code[scales.int()] * nested.absmax.repeat_interleave(256)[: len(scales)] + state.offset
            numbers = torch.stack([packed >> 4, packed & 15], 1).flatten().int()
            return (state.code[numbers] * scales.repeat_interleave(state.blocksize)[: len(numbers)]).view(128, -1)

        cut = down(quantized(folder, "bnb-4bit"))
        keep_(cut, 1, torch.arange(0, 2 * columns, 2)[:columns] % 192)
        cut.in_features = columns
        loaded = down(quantized(plain_folder(tmp_path, intermediate_size=columns), "bnb-4bit"))
        for layer in (cut, loaded):
            torch.testing.assert_close(by_forward(layer), reference(layer), rtol=0, atol=1e-6)
            torch.testing.assert_close(weight_rows(layer), reference(layer), rtol=0, atol=1e-6)
            inputs = torch.ones(1, columns, requires_grad=True)
            layer(inputs).sum().backward()
            assert inputs.grad is not None
            torch.testing.assert_close(inputs.grad[0], reference(layer).sum(0), rtol=0, atol=1e-4)


class TestScores:
    @pytest.mark.parametrize("criterion", ["fisher", "lora", "taylor", "magnitude", "wanda", "flap"])
    def test_they_are_those_of_the_dequantized_model(self, folder: Path, kind: str, criterion: str) -> None:
        model = quantized(folder, kind)
        reference, scores = dequantized_copy(model, folder), []
        for each in (with_lora(model).train(), with_lora(reference).train()):
            structure = describe(each)
            measure: Any = GROUP_CRITERIA[criterion]().build()
            measure.attach(each, structure)
            sequence_losses(each, IDS).sum().backward()
            scores.append(measure.scores(Plan.full(structure)))
            measure.detach()
        for name, expected in scores[1].items():
            torch.testing.assert_close(scores[0][name], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    def test_the_effective_weight_is_the_dequantized_one_and_the_adapters(self, model: PreTrainedModel) -> None:
        layer: Callable[..., Any] = projections(with_lora(model), 0)["up_proj"]
        assert isinstance(layer, nn.Module)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = weight_rows(layer.get_base_layer()) + layer.scaling["default"] * (b @ a)
        torch.testing.assert_close(effective_weight(layer), expected)


@pytest.mark.usefixtures("enough_tokens")
class TestRefit:
    def test_it_makes_up_for_the_columns_that_go(self, model: PreTrainedModel, kind: str) -> None:
        structure = describe(model, ["channels"])
        plan = Plan.full(structure).keep({d.name: list(range(0, 192, 2)) for d in structure})
        layer, rows = down(model), [token_ids(1, 60, seed=seed)[0] for seed in range(10)]
        seen: list[torch.Tensor] = []
        with layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1))):
            for row in rows:
                logits_of(model, row[None])
        inputs, before = torch.cat(seen), weight_rows(layer)
        wanted = inputs @ before.T
        kept = inputs[:, ::2]
        cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=rows, repair=Refit(1e-6))
        best = torch.linalg.lstsq(kept.double(), wanted.double()).solution.float()
        errors = [(kept @ weight - wanted).norm() for weight in (best, exact_weight(layer).T, before[:, ::2].T)]
        assert errors[0] * (1 - 1e-6) <= errors[1] <= 1.01 * errors[0] < 0.99 * errors[2]
        assert weight_rows(layer).shape == (128, 96)
        assert (weight_rows(layer) - exact_weight(layer)).norm() < (0.12 if kind == "bnb-4bit" else 0.02) * best.norm()

    def test_the_adapter_stays_out_of_the_refitted_base(self, model: PreTrainedModel) -> None:
        structure = describe(model, ["channels"])
        plan = Plan.full(structure).keep({d.name: list(range(64, 128)) for d in structure})
        base = weight_rows(down(model))[:, 64:128]
        adapted = with_lora(model)
        rows = [token_ids(1, 40, seed=seed)[0] for seed in range(4)]
        cut_and_repair_(adapted, structure, Plan.full(structure), plan, calibration=rows, repair=Refit(1e9))
        # So strong a ridge leaves the columns that stay as they were.
        found = exact_weight(projections(adapted, 0)["down_proj"].get_base_layer())  # type: ignore[operator]
        torch.testing.assert_close(found, base, rtol=2e-3, atol=1e-5)


class TestOwnTrainer:
    def test_the_callback_prunes_a_quantized_model_and_its_result_is_saved_plain(
        self, tmp_path: Path, kind: str
    ) -> None:
        from datasets import Dataset
        from tests.pruning.runs import arguments_of, lora_config, pruning_config
        from trl import SFTConfig, SFTTrainer

        from loraprune import PruningCallback, save_pruned

        ids = token_ids(48, 16).tolist()
        callback = PruningCallback(pruning_config())
        trainer = SFTTrainer(
            model=quantized(tiny_checkpoint(tmp_path / "model", **WIDTHS), kind, prepared=False),
            args=SFTConfig(**arguments_of(tmp_path / "run"), bf16=False),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=tiny_tokenizer(pad=True),
            peft_config=lora_config(),
            callbacks=[callback],
        )
        trainer.train()
        save_pruned(callback, trainer.model, None, tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert not is_quantized_model(loaded)
        assert loaded.config.intermediate_size < 192
        assert torch.isfinite(logits_of(loaded, IDS)).all()
