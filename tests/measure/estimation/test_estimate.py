from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models import tiny_config
from tests.thinned import thinned
from tests.zoo import ROWS

from loraprune import Estimate, EstimateConfig, PruningConfig, estimate
from loraprune.architectures import UnsupportedArchitectureError
from loraprune.checkpoint.load import CheckpointError
from loraprune.checkpoint.shapes import find_shapes
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.gpus import GIB, GPUS
from loraprune.measure.estimation.remedies import remedies
from loraprune.tasks.options import LoraOptions

BY_NAME = {row.name: row for row in ROWS}
SEVENTY = "llama-2-70b"


CARDS = tuple(gpu for gpu in GPUS if gpu.name in ("A100 40 GB", "H100 80 GB"))


@pytest.fixture(autouse=True)
def _two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit costs a few more simulations."""
    monkeypatch.setattr("loraprune.measure.estimation.estimate.GPUS", CARDS)


def fit(found: Estimate, gpu: str) -> bool:
    (entry,) = [entry for entry in found.gpus if entry.gpu == gpu]
    assert entry.fits == (entry.needed <= entry.usable)
    return entry.fits


@pytest.mark.full
def test_seventy_billion_parameters_fit_one_card_of_80_gb_in_4_bits_alone() -> None:
    estimator = Estimator(find_shapes(SEVENTY), EstimateConfig(quantization="bnb-4bit"))
    in_4_bits = estimator.estimate()
    assert fit(in_4_bits, "H100 80 GB")
    assert not fit(in_4_bits, "A100 40 GB")
    # 0.5 bytes and a scale for 64 of those weights that bitsandbytes quantizes; embedding and head in 16 bits.
    rest = 2 * 32000 * 8192
    numbers = in_4_bits.before.parameters - rest
    assert in_4_bits.memory.weights == pytest.approx(numbers * (0.5 + 1 / 64 + 4 / 64 / 256) + 2 * rest, rel=1e-3)
    in_16_bits = estimate(SEVENTY)
    assert not fit(in_16_bits, "H100 80 GB")
    (h100,) = [entry for entry in in_16_bits.gpus if entry.gpu == "H100 80 GB"]
    assert h100.remedy == "--load-in-4bit"


def test_halving_llama_7b_keeps_legal_widths_and_the_ratio() -> None:
    found = estimate("llama-7b")
    assert found.ratio == pytest.approx(0.5, abs=1e-3)
    assert found.after.widths == {"heads": (16, 16), "channels": (5504, 5504)}
    assert found.after.parameters == found.before.parameters - 32 * 16 * (4 * 128 * 4096) - 32 * 5504 * 3 * 4096
    assert found.after.file_bytes == 2 * found.after.parameters
    assert found.before.cache_bytes == 2 * 32 * 4096 * 2
    assert found.after.cache_bytes == found.before.cache_bytes / 2
    assert found.step_flops_after < 0.6 * found.step_flops
    memory = found.memory
    parts = (memory.weights, memory.adapter, memory.activations, memory.temporary, memory.criterion)
    assert sum(parts) == pytest.approx(memory.step)
    assert memory.peak == max(memory.step, memory.cut)
    # Inputs of 32 blocks, 8 rows of 1024 tokens, 4096 wide, in 16 bits.
    assert memory.activations == pytest.approx(32 * 8 * 1024 * 4096 * 2, rel=0.1)


def test_the_defaults_are_those_of_a_run() -> None:
    settings = estimate("llama-7b").settings
    assert (settings["batch_size"], settings["max_length"]) == (8, 1024)
    assert settings["gradient_checkpointing"]
    assert settings["bf16"]
    assert settings["dtype"] == "bfloat16"


LIGHTER: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {"gradient_checkpointing": False}),
    ({"batch_size": 1}, {}),
    ({"max_length": 256}, {}),
    ({"quantization": "bnb-8bit", "batch_size": 1}, {"batch_size": 1}),
    ({"quantization": "bnb-4bit"}, {"quantization": "bnb-8bit"}),
    ({}, {"dtype": "float32"}),
    ({"lora": LoraOptions(r=4)}, {"lora": LoraOptions(r=64)}),
    ({"pruning": PruningConfig(calibration_sequences=8)}, {"pruning": PruningConfig(calibration_sequences=512)}),
]


@pytest.mark.parametrize(("lighter", "than"), thinned(LIGHTER, 3))
def test_what_should_take_less_memory_does(
    lighter: dict[str, object], than: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraprune.measure.estimation.estimate.GPUS", ())

    def peak(values: dict[str, object]) -> float:
        return estimate("llama-7b", EstimateConfig(**values)).memory.peak  # type: ignore[arg-type]

    assert peak(lighter) < peak(than)


def test_several_ratios_share_what_does_not_depend_on_them() -> None:
    estimator = Estimator(find_shapes("llama-3.2-1b"), EstimateConfig())
    low, high = estimator.estimate(0.2), estimator.estimate(0.6)
    assert low.before == high.before
    assert low.memory.step == high.memory.step
    assert low.after.parameters > high.after.parameters
    assert low.memory_after.peak > high.memory_after.peak
    alone = estimate("llama-3.2-1b", EstimateConfig(pruning=PruningConfig(ratio=0.6)))
    assert alone.after == high.after
    assert alone.memory == high.memory


def test_a_dense_model_that_is_followed_takes_memory_and_time() -> None:
    alone, following = (estimate("llama-3.2-1b", EstimateConfig(distill=share)) for share in (None, 0.5))
    weights, logits = 1.236e9 * 2, 3 * 8 * 1024 * 128_256 * 2
    assert alone.memory.teacher == 0.0
    assert following.memory.teacher == pytest.approx(weights + logits, rel=1e-2)
    assert following.memory.step == alone.memory.step + following.memory.teacher
    assert following.memory.cut - alone.memory.cut == pytest.approx(weights, rel=1e-2)
    assert following.step_flops == alone.step_flops
    # A forward pass of the dense model beside three of one with half of its blocks, and adapters.
    assert 1.2 < following.step_flops_after / alone.step_flops_after < 1.8
    assert [fit.needed for fit in following.gpus] > [fit.needed for fit in alone.gpus]


def test_a_target_in_parameters_is_met() -> None:
    found = estimate("llama-3.2-1b", EstimateConfig(target_params=800_000_000))
    assert found.after.parameters == pytest.approx(800_000_000, rel=0.01)


@pytest.mark.full
def test_blocks_layers_that_stay_and_the_hidden_size_can_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraprune.measure.estimation.estimate.GPUS", ())
    config = find_shapes("llama-3.2-1b").config
    blocks = estimate(config, EstimateConfig(pruning=PruningConfig(dimensions=("blocks",))))
    assert (blocks.before.blocks, blocks.after.blocks) == (16, 8)
    assert blocks.after.cache_bytes == blocks.before.cache_bytes / 2
    hidden = estimate(config, EstimateConfig(pruning=PruningConfig(dimensions=("hidden",), ratio=0.25)))
    assert (hidden.before.hidden_size, hidden.after.hidden_size) == (2048, 1536)
    kept = estimate(config, EstimateConfig(pruning=PruningConfig(keep_layers=(0, -1), ratio=0.25)))
    assert kept.after.widths["channels"][1] == 8192
    assert kept.after.widths["channels"][0] < 8192


@pytest.mark.parametrize(
    "name", thinned(["gpt2", "bloom", "falcon, new", "mixtral", "deepseek_v3", "t5", "vit", "gemma3_text"], 3)
)
def test_every_kind_of_family_can_be_planned(name: str) -> None:
    config = BY_NAME[name].model().config
    config.pad_token_id = 0
    length = None if name == "vit" else 16
    found = estimate(config, EstimateConfig(batch_size=2, max_length=length))
    assert 0 < found.memory_after.step <= found.memory.step
    assert found.after.parameters < found.before.parameters
    assert found.step_flops > 3 * found.before.forward_flops


def test_plain_values_can_be_written_as_json() -> None:
    values = json.loads(json.dumps(estimate("llama-3.2-1b").to_json()))
    assert values["memory"]["peak"] >= values["memory"]["step"]
    assert [entry["gpu"] for entry in values["gpus"]] == [card.name for card in CARDS]
    assert all(entry["fits"] == (entry["needed"] <= entry["usable"]) for entry in values["gpus"])


def test_remedies_go_from_mild_to_severe_and_each_is_a_run() -> None:
    found = list(remedies(EstimateConfig(gradient_checkpointing=False), can_recompute=True))
    flags = [words for words, _ in found]
    assert flags[0] == "--gradient-checkpointing"
    assert flags[-1].endswith("--repair none")
    assert len(set(flags)) == len(flags)
    for words, settings in found:
        rows = settings.batch_size * settings.gradient_accumulation_steps
        assert rows == 8
        assert ("--load-in-4bit" in words) == (settings.quantization == "bnb-4bit")
        assert ("--load-in-8bit" in words) == (settings.quantization == "bnb-8bit")


@pytest.mark.full
def test_what_a_remedy_says_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    (card,) = [gpu for gpu in GPUS if gpu.name == "RTX 4090 24 GB"]
    monkeypatch.setattr("loraprune.measure.estimation.estimate.GPUS", (card,))
    (entry,) = estimate("qwen2.5-14b").gpus
    assert not entry.fits
    assert entry.remedy is not None
    by_words = dict(remedies(EstimateConfig(gradient_checkpointing=True), can_recompute=True))
    assert fit(estimate("qwen2.5-14b", by_words[entry.remedy]), card.name)


def test_folders_files_and_presets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("qwen3")
    config.save_pretrained(tmp_path / "model")
    for name in (tmp_path / "model", tmp_path / "model" / "config.json"):
        assert find_shapes(str(name)).config.hidden_size == 32
    monkeypatch.chdir(tmp_path)
    config.save_pretrained("llama-7b")
    assert find_shapes("llama-7b").config.hidden_size == 32  # the folder wins


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", CheckpointError, "cannot be read as JSON"),
        ("{}", CheckpointError, "names no model_type"),
        ('{"model_type": "mamba"}', UnsupportedArchitectureError, "mamba"),
        ('{"model_type": "no such thing"}', UnsupportedArchitectureError, "no such thing"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', CheckpointError, "is quantized"),
        ('{"model_type": "llama", "hidden_size": "wide"}', CheckpointError, "cannot be read"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(error, match=message):
        estimate(path)


def test_a_preset_with_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(CheckpointError, match=r"Did you mean 'llama-2-70b'\?"):
        estimate("llama2-70b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"quantization": "int3"}, "choose one of bnb-8bit"),
        ({"dtype": "int8"}, "choose one of float32"),
        ({"device": "tpu"}, "choose one of cuda, cpu"),
        ({"pruning": PruningConfig(criterion="pst")}, ": there is nothing to plan"),
        ({"pruning": PruningConfig(criterion="compresso")}, "Use 'fisher'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EstimateConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 4096}, "longer than the model's context of 2048"),
        ({"max_length": 1}, "at least 2 tokens"),
        ({"pruning": PruningConfig(ratio=0.999)}, "A ratio of 0.999"),
        ({"pruning": PruningConfig(dimensions=("rows",))}, "no dimensions of kind 'rows'"),
        ({"target_params": 10}, "A target of 10 parameters"),
    ],
)
def test_what_the_model_cannot_do_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate("llama-7b", EstimateConfig(**values))  # type: ignore[arg-type]


@pytest.mark.full
def test_published_resources_of_the_paper_lie_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRAPrune (arXiv 2305.18403), Table 6: LLaMA-7B 18.3 GB; 8 bits 13.8 GB. Batch and length are not told."""
    monkeypatch.setattr("loraprune.measure.estimation.estimate.GPUS", ())
    half = PruningConfig(criterion="lora", repair="none")
    run = {"pruning": half, "batch_size": 4, "max_length": 512}
    assert 13 < estimate("llama-7b", EstimateConfig(**run)).memory.step / GIB < 18.3
    assert estimate("llama-7b", EstimateConfig(**run, quantization="bnb-8bit")).memory.step / GIB < 13.8
