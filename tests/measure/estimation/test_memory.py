"""The memory model against what steps and cuts really take."""

from __future__ import annotations

import pytest
import torch
from benchmarks.memory_model import BF16, FULL, Step, estimated, measured, rows, settings, small_config
from tests.quantized_models import need
from transformers import PretrainedConfig

from loraprune.checkpoint.source import ModelSource
from loraprune.measure.benchmark.memory import LiveBytes
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.forward import block_bytes
from loraprune.measure.estimation.refit import CalibrationSize, Consumer, cut_bytes
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_

pytest.importorskip("trl", minversion="1.15", reason="older versions of trl compute the loss in another way")

WITHIN = 0.1


def near(config: PretrainedConfig, run: EstimateConfig, *, own_loss: bool = False) -> None:
    real = measured(Step(config, run, own_loss=own_loss))
    assert estimated(config, run, own_loss=own_loss) == pytest.approx(real, rel=WITHIN)


@pytest.mark.parametrize(
    ("family", "criterion", "batch", "length", "further"),
    [
        ("llama", "fisher", 2, 128, {}),
        ("llama", "taylor", 4, 64, BF16),
        ("gpt2", "lora", 4, 64, {**BF16, **FULL}),
        ("qwen2", "fisher", 4, 64, FULL),
        ("llama", "wanda", 2, 64, {"gradient_accumulation_steps": 2}),
    ],
)
def test_the_peak_of_a_step_with_the_loss_of_trl_is_estimated_within_a_tenth(
    family: str, criterion: str, batch: int, length: int, further: dict[str, object]
) -> None:
    near(small_config(family), settings(criterion, batch, length, **further))


@pytest.mark.parametrize(
    ("family", "criterion", "batch", "further"),
    [
        ("llama", "lora", 4, {}),
        ("llama", "lora", 1, FULL),
        ("llama", "taylor", 4, {**BF16, **FULL}),
        ("gpt2", "fisher", 4, BF16),
        ("qwen2", "taylor", 2, {"gradient_accumulation_steps": 2}),
    ],
)
def test_what_blocks_take_is_estimated_within_a_tenth(
    family: str, criterion: str, batch: int, further: dict[str, object]
) -> None:
    near(small_config(family, vocab_size=64), settings(criterion, batch, 64, **further), own_loss=True)


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
@pytest.mark.parametrize(("criterion", "further"), [("fisher", FULL), ("lora", {})])
def test_a_step_on_a_quantized_base_is_estimated_within_a_tenth(
    quantization: str, criterion: str, further: dict[str, object]
) -> None:
    need(quantization)
    run = settings(criterion, 4, 64, quantization=quantization, **further)
    near(small_config("llama", vocab_size=64, num_hidden_layers=2), run, own_loss=True)


@pytest.mark.parametrize(
    ("hidden", "channels", "sequences", "tokens", "share", "dtype", "kinds"),
    [
        (128, 1408, 16, 64, 0.8, torch.float32, ["channels"]),  # second moments take most
        (128, 352, 64, 128, 0.9, torch.float32, ["channels"]),  # tokens do
        (128, 512, 200, 64, 0.7, torch.bfloat16, ["channels"]),  # calibration data does
        (256, 512, 4, 64, 0.5, torch.bfloat16, ["channels"]),  # the error of the repair does
        (128, 512, 200, 64, 0.75, torch.bfloat16, ["heads", "channels"]),  # so do outputs of finished attention
    ],
)
@pytest.mark.parametrize("held_back", [False, True])
def test_the_peak_of_a_cut_with_refit_is_estimated_within_a_tenth(
    request: pytest.FixtureRequest,
    held_back: bool,
    hidden: int,
    channels: int,
    sequences: int,
    tokens: int,
    share: float,
    dtype: torch.dtype,
    kinds: list[str],
) -> None:
    if not held_back:
        request.getfixturevalue("enough_tokens")
    config = small_config(
        "llama", vocab_size=64, num_hidden_layers=2, hidden_size=hidden, intermediate_size=channels,
        num_key_value_heads=8,
    )  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    step = Step(config, settings("fisher", 1, 16, dtype=name))
    step.run.end()
    structure = step.run.structure
    kept = {d.name: range(round(d.num_groups * share)) for d in structure if d.kind in kinds}
    data = [torch.randint(64, (tokens,)) for _ in range(sequences)]
    static = sum(parameter.nbytes for parameter in step.model.parameters())
    with LiveBytes() as live:
        for parameter in step.model.parameters():
            live.count(parameter)
        cut_and_repair_(step.model, structure, Plan.full(structure), Plan.full(structure).keep(kept), calibration=data)
    models = ShapeModels.of(ModelSource(name="model", config=config), None, ())
    shapes, described = models.adapted(2, None, dtype, EstimateConfig(device="cpu"))
    size = CalibrationSize(sequences=sequences, tokens=tokens, hidden=hidden, itemsize=dtype.itemsize)
    block = block_bytes(shapes, described, models.inputs(size.rows, tokens), device="cpu")
    widths = [channels] if len(kinds) == 1 else [hidden, channels]
    consumers = [
        Consumer(outputs=hidden, inputs=width, kept=round(width * share), finished=number)
        for number, width in enumerate(widths)
    ]
    beside = cut_bytes(consumers, size, block)
    assert static + beside == pytest.approx(live.peak, rel=WITHIN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("row", rows("cuda"), ids=lambda row: row.label)
def test_steps_on_a_gpu_are_estimated_within_a_tenth(row: object) -> None:
    torch.cuda.empty_cache()
    near(row.config, row.settings, own_loss=row.own_loss)  # type: ignore[attr-defined]
