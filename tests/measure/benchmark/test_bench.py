from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model, tiny_checkpoint
from tests.tasks.models import tiny_bert, tiny_t5, tiny_vit
from transformers import MixtralConfig, MixtralForCausalLM

import loraprune
from loraprune.checkpoint.load import CheckpointError
from loraprune.checkpoint.weight_files import weight_files
from loraprune.measure.benchmark.bench import bench, memory_reported
from loraprune.measure.benchmark.config import TIMED_CRITERIA, BenchConfig
from loraprune.measure.benchmark.contenders import unique_labels
from loraprune.measure.benchmark.result import BenchFileError, read_bench
from loraprune.measure.benchmark.training_step import TrainingBench


def quick(**changes: Any) -> BenchConfig:
    return BenchConfig(**{"repeats": 2, "warmup": 1, "new_tokens": 2, **changes})


@pytest.fixture
def pruned(tmp_path: Path, checkpoint: Path) -> Path:
    """A narrower checkpoint that says what it was pruned from, in the words of our own record."""
    folder = tiny_checkpoint(tmp_path / "narrow", intermediate_size=16, num_attention_heads=4, num_key_value_heads=2)
    record = {"base_model": str(checkpoint), "settings": {"oneshot": {"method": "osscar"}}}
    (folder / "pruning.json").write_text(json.dumps(record))
    return folder


def test_models_are_measured_against_the_first(checkpoint: Path, pruned: Path) -> None:
    result = bench([checkpoint, pruned], quick(decode_batch=(1, 3)))
    dense, narrow = (model.label for model in result.models)
    assert (dense, narrow) == ("tiny-llama", "narrow")
    assert [(f.contender, f.measure, f.settings["batch_size"]) for f in result.figures] == [
        (label, measure, batch)
        for measure, batch in (("prefill", 1), ("decoding", 1), ("decoding", 3))
        for label in (dense, narrow)
    ]
    for figure in result.figures:
        assert len(figure.times.seconds) == 2
        assert figure.peak_bytes is not None
        assert figure.flops is not None
    prefill = result.figure(narrow, "prefill")
    assert prefill.share == pytest.approx(prefill.times.over(result.figure(dense, "prefill").times))
    assert result.figure(dense, "prefill").share == 1.0
    assert prefill.tokens == 64
    # Half of the KV heads, half of the cache; decoding begins where two tokens of the context are left.
    caches = [result.figure(label, "decoding", batch_size=3).cache_bytes_per_token for label in (dense, narrow)]
    assert caches[0] == 2 * caches[1]
    assert result.figure(dense, "decoding").settings["prompt_tokens"] == 62


def test_sizes_are_those_of_the_files_and_of_the_parameters(checkpoint: Path) -> None:
    (model,) = bench(checkpoint, quick(decode_batch=())).models
    assert model.parameters == byte_model().num_parameters()
    assert model.file_bytes == (checkpoint / "model.safetensors").stat().st_size
    buffers = sum(value.numel() for value in byte_model().buffers())  # the rotary frequencies
    assert model.memory_bytes == (model.parameters + buffers) * 4


def test_what_lies_beside_the_weights_is_no_part_of_their_size(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    byte_model().save_pretrained(folder, max_shard_size="20KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    (folder / "consolidated.safetensors").write_bytes(b"x" * 100_000)
    assert sorted(weight_files(folder)) == sorted(shards)
    (folder / "model.safetensors").touch()  # transformers looks for this one first
    assert weight_files(folder) == [folder / "model.safetensors"]
    (tmp_path / "adapter").mkdir()
    parts = [tmp_path / "adapter" / f"{name}.safetensors" for name in ("adapter_model", "refitted_base_weights")]
    for part in parts:
        part.touch()
    assert weight_files(tmp_path / "adapter") == parts


def test_a_pruned_model_is_compared_with_random_weights_of_its_base_whose_own_are_not_needed(
    tmp_path: Path, checkpoint: Path, pruned: Path
) -> None:
    config_only = tmp_path / "config-only"
    config_only.mkdir()
    shutil.copy(checkpoint / "config.json", config_only)
    record = json.loads((pruned / "pruning.json").read_text())
    (pruned / "pruning.json").write_text(json.dumps({**record, "base_model": str(config_only)}))
    dense, narrow = bench(pruned, quick(against_base=True, decode_batch=())).models
    assert dense.random_weights
    assert not narrow.random_weights
    assert dense.parameters == byte_model().num_parameters() > narrow.parameters


def test_a_base_that_is_unknown_or_gone_is_named_with_the_remedy(checkpoint: Path, pruned: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was pruned from is unknown.*--base"):
        bench(checkpoint, quick(against_base=True))
    (pruned / "pruning.json").write_text(json.dumps({"base_model": str(pruned / "gone")}))
    with pytest.raises(CheckpointError, match=r"was pruned from .*gone.*config\.json.*--base"):
        bench(pruned, quick(against_base=True))
    with pytest.raises(CheckpointError, match="there is neither"):
        bench(checkpoint, quick(base=str(pruned)))


def test_an_adapter_is_measured_unmerged_and_merged(tmp_path: Path, checkpoint: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    folder = tmp_path / "run" / "adapter"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    unmerged, merged = bench(folder, quick(decode_batch=(2,))).models
    assert (unmerged.label, unmerged.adapter) == ("run/adapter (unmerged)", "unmerged")
    assert (merged.label, merged.adapter) == ("run/adapter (merged)", "merged")
    assert unmerged.parameters > merged.parameters == byte_model().num_parameters()


def test_an_adapter_costs_operations_until_it_is_merged() -> None:
    from tests.models import with_lora

    plain, tuned = byte_model(), with_lora(byte_model())
    result = bench({"plain": plain, "unmerged": tuned}, quick(decode_batch=()))  # type: ignore[dict-item]
    figures = [result.figure(label, "prefill") for label in ("plain", "unmerged")]
    config = plain.config
    per_token = config.num_hidden_layers * sum(
        3 * (module.in_features + module.out_features)
        for name, module in plain.model.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert figures[1].flops - figures[0].flops == 2 * 64 * per_token  # type: ignore[operator]
    assert figures[0].settings == figures[1].settings


@pytest.mark.parametrize(("make", "measure"), [(tiny_bert, "forward pass"), (tiny_vit, "forward pass")])
def test_what_writes_no_text_is_not_decoded_and_that_is_said(make: Any, measure: str) -> None:
    result = bench({"a": make(), "b": make()}, quick())
    assert {figure.measure for figure in result.figures} == {measure}
    assert "writes no text" in result.left_out["decoding"]


def test_an_encoder_decoder_model_decodes() -> None:
    result = bench({"t5": tiny_t5()}, quick(tokens=8, decode_batch=(2,)))
    assert [figure.measure for figure in result.figures] == ["prefill", "decoding"]
    assert result.figures[0].settings["input"] == "1 × 8 source and 8 target tokens"


def test_a_model_without_a_tokenizer_is_measured(tmp_path: Path) -> None:
    byte_model().save_pretrained(tmp_path / "bare")
    assert bench(tmp_path / "bare", quick(decode_batch=())).figures


def test_models_for_different_things_are_not_compared() -> None:
    with pytest.raises(ValueError, match="text is made for causal-lm and image for image-classification"):
        bench({"text": byte_model(), "image": tiny_vit()}, quick())


def test_one_at_a_time_compares_medians(checkpoint: Path, pruned: Path) -> None:
    result = bench([checkpoint, pruned], quick(one_at_a_time=True, decode_batch=()))
    first, second = result.figures
    assert second.share == pytest.approx(second.times.median / first.times.median)
    assert result.settings["turns"] is False


def test_one_at_a_time_the_sliced_model_is_gone_before_the_dense_one_is_trained(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []
    tuned = TrainingBench.tuned

    def watched(self: TrainingBench) -> Any:
        alive.append(sum(reference() is not None for reference in seen))
        model = tuned(self)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(TrainingBench, "tuned", watched)
    asked = quick(profile="training", new_tokens=16, tokens=8, criteria=("lora",), one_at_a_time=True)
    result = bench(checkpoint, asked)
    assert [figure.contender for figure in result.figures] == ["plain LoRA", "lora", "masks, 50%", "slices, 50%"]
    assert alive == [0, 0]


def test_a_batch_that_is_named_twice_is_measured_once() -> None:
    assert BenchConfig(decode_batch=(2, 1, 2)).decode_batch == (2, 1)


def test_operations_are_counted_before_the_memory_so_that_no_first_call_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = byte_model()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    before: list[int] = []

    def noted(call: Any, device: Any, *, held: int = 0) -> int:
        before.append(len(calls))
        return 1

    monkeypatch.setattr("loraprune.measure.benchmark.inference.peak_bytes", noted)
    bench({"a": model}, quick(decode_batch=()))
    assert before == [1]


def test_threads_are_set_for_the_run_and_restored(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    result = bench(checkpoint, quick(threads=before + 1, repeats=1, warmup=0, decode_batch=()))
    assert result.machine["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_progress_counts_every_call_of_every_stage(checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    bench(checkpoint, quick(decode_batch=(2,)), progress=lambda *progress: seen.append(progress))
    assert seen == [(stage, done, 3) for stage in ("prefill, 1 × 64 tokens", "decoding, batch 2") for done in range(4)]


def test_a_training_step_of_each_criterion_of_masks_and_of_slices_is_measured_against_plain_lora(
    checkpoint: Path,
) -> None:
    result = bench(checkpoint, quick(profile="training", new_tokens=16, tokens=16, batch_size=2, accumulation=2))
    names = [figure.contender for figure in result.figures]
    assert names == ["plain LoRA", *TIMED_CRITERIA, "masks, 50%", "slices, 50%"]
    assert not result.left_out
    plain, sliced = (result.figure(name, "training step") for name in ("plain LoRA", "slices, 50%"))
    assert sliced.peak_bytes < plain.peak_bytes  # type: ignore[operator]
    assert plain.tokens == 2 * 2 * 16
    read_at_cuts = {figure.contender for figure in result.figures if figure.cut_seconds is not None}
    assert "magnitude" in read_at_cuts
    assert "fisher" not in read_at_cuts


def test_a_criterion_that_a_model_cannot_be_scored_by_is_left_out_with_the_reason(tmp_path: Path) -> None:
    values = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 40, "hidden_size": 32}
    values |= {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    MixtralForCausalLM(MixtralConfig(**values)).save_pretrained(tmp_path / "mixtral")
    asked = quick(profile="training", new_tokens=16, tokens=8, criteria=("fisher", "taylor"))
    result = bench(tmp_path / "mixtral", asked)
    assert [figure.contender for figure in result.figures] == ["plain LoRA", "fisher", "masks, 50%", "slices, 50%"]
    assert "cannot look into stacked experts" in result.left_out["taylor"]


def test_a_quantized_base_is_trained(checkpoint: Path) -> None:
    pytest.importorskip("torchao")
    asked = quick(profile="training", new_tokens=16, tokens=8, criteria=("fisher",), quantization="torchao-int8")
    result = bench(checkpoint, asked)
    plain, *_, sliced = result.figures
    (model,) = result.models
    assert model.memory_bytes < model.parameters * 4  # most of them have 8 bits
    assert plain.settings["quantization"] == "torchao-int8"
    assert sliced.peak_bytes < plain.peak_bytes  # type: ignore[operator]


def test_a_training_step_of_a_classifier_is_measured(tmp_path: Path) -> None:
    tiny_vit().save_pretrained(tmp_path / "vit")
    result = bench(tmp_path / "vit", quick(profile="training", new_tokens=16, criteria=("fisher",), batch_size=3))
    assert [figure.contender for figure in result.figures] == ["plain LoRA", "fisher", "masks, 50%", "slices, 50%"]
    assert result.figures[0].tokens is None
    assert result.figures[0].items == 3


def test_a_result_is_written_and_read_back_with_its_raw_times(tmp_path: Path, checkpoint: Path) -> None:
    result = bench(checkpoint, quick(), command="loraprune bench tiny-llama")
    file = tmp_path / "bench.json"
    file.write_text(result.to_text(), encoding="utf-8")
    again = loraprune.read_bench(file)
    assert again.figures == result.figures
    assert again.models == result.models
    assert again.to_text() == result.to_text()
    stored = json.loads(file.read_text())
    assert stored["command"] == "loraprune bench tiny-llama"
    figure = stored["figures"][0]
    assert figure["median"] == pytest.approx(sum(sorted(figure["seconds"])) / 2)
    assert {"torch", "transformers"} <= set(stored["versions"])
    assert {"device", "device_name", "threads", "memory_counter"} <= set(stored["machine"])
    assert stored["settings"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 99}, "version 99.*reads 1"),
        ({"format": "other"}, "was not written by loraprune bench"),
        ({"figures": [{}]}, "broken benchmark"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, checkpoint: Path, change: dict[str, Any], complaint: str
) -> None:
    values = json.loads(bench(checkpoint, quick(decode_batch=())).to_text())
    (tmp_path / "bench.json").write_text(json.dumps(values | change))
    with pytest.raises(BenchFileError, match=complaint):
        read_bench(tmp_path / "bench.json")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"profile": "trainin"}, "Did you mean 'training'"),
        ({"dtype": "bf16"}, "Did you mean 'bfloat16'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"decode_batch": (1, 0)}, "decode_batch is 0"),
        ({"profile": "training", "criteria": ("fischer",)}, "Did you mean 'fisher'"),
        ({"criteria": ("fisher",)}, "option of the profile 'training'"),
        ({"profile": "training", "new_tokens": 4}, "option of the profile 'inference'"),
        ({"ratio": 1.0}, "ratio is 1.0"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        BenchConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tokens": 65}, "tokens is 65, and the models read 64"),
        ({"new_tokens": 64}, "no room for a prompt"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "nonsense"}, "name one like cpu"),
        ({"device": "meta"}, "on a CPU or with CUDA"),
        ({"attn_implementation": "flash_attention_3"}, "cannot run with the attention"),
        ({"attn_implementation": "flex_attention", "device": "cpu"}, "made for an accelerator, and this is a CPU"),
    ],
)
def test_what_does_not_fit_the_models_or_the_machine_is_refused(
    checkpoint: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        bench(checkpoint, quick(**changes))


def test_too_little_memory_is_told_with_a_remedy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraprune.measure.benchmark.bench.free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"weights of 2 models take .*--one-at-a-time"):
        bench([checkpoint, checkpoint], quick())
    assert bench([checkpoint, checkpoint], quick(one_at_a_time=True, decode_batch=())).figures


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_told_with_a_remedy(error: Exception) -> None:
    with (
        pytest.raises(ValueError, match=r"memory ran out\. .*bfloat16"),
        memory_reported(torch.device("cpu"), one_at_a_time=True),
    ):
        raise error


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_reported(torch.device("cpu"), one_at_a_time=True):
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["org/llama", "./out"], ["llama", "out"]),
        (["a/out", "b/out"], ["a/out", "b/out"]),
        (["runs/a/adapter"], ["a/adapter"]),
        (["same", "same/"], ["same", "same #2"]),
        (["x/y", "y"], ["x/y", "y"]),
    ],
)
def test_labels_are_the_shortest_ends_that_tell_names_apart(names: list[str], labels: list[str]) -> None:
    assert unique_labels(names) == labels
