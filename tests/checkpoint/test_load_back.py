"""Results are loaded back before they take their place: what loads as another model is an error."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import byte_model
from transformers import ConvNextConfig, ConvNextForImageClassification, T5Config, T5ForConditionalGeneration

from loraprune import LoadBackError, OneshotConfig, Plan, RunOptions, cut_, load, oneshot, prune, recover, save
from loraprune.checkpoint.load_back import check_loads_back
from loraprune.cli.main import main

TRAINING: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "max_length": 16}


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestComparison:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_what_was_saved_passes(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model = byte_model().to(dtype)
        model.save_pretrained(tmp_path)
        check_loads_back(tmp_path, model)

    def test_a_ragged_result_passes(self, tmp_path: Path) -> None:
        model = byte_model()
        cut_(model, Plan({"layers.0.channels": tuple(range(40))}))
        save(model, tmp_path / "out")
        finished: Any = load(tmp_path / "out")
        check_loads_back(tmp_path / "out", finished)

    def test_encoder_decoders_and_image_models_pass(self, tmp_path: Path) -> None:
        text = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
        image = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=16)
        models: Any = (T5ForConditionalGeneration(text).eval(), ConvNextForImageClassification(image).eval())
        for number, model in enumerate(models):
            model.save_pretrained(tmp_path / str(number))
            check_loads_back(tmp_path / str(number), model)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "change", [{"rms_norm_eps": 0.5}, {"hidden_act": "relu"}, {"rope_parameters": {"rope_theta": 2.0}}]
    )
    def test_a_config_that_makes_another_model_is_found(
        self, tmp_path: Path, dtype: torch.dtype, change: dict[str, Any]
    ) -> None:
        model = byte_model().to(dtype)
        model.save_pretrained(tmp_path)
        if "rope_parameters" in change:
            change = {"rope_parameters": {"rope_type": "default", **change["rope_parameters"]}}
        change_config(tmp_path, **change)
        with pytest.raises(LoadBackError, match=r"does not compute what the model does: .* differ by"):
            check_loads_back(tmp_path, model)

    def test_tensors_that_are_missing_or_do_not_fit_are_found(self, tmp_path: Path) -> None:
        model = byte_model()
        model.save_pretrained(tmp_path)
        change_config(tmp_path, intermediate_size=48)
        with pytest.raises(LoadBackError, match="cannot be loaded"):
            check_loads_back(tmp_path, model)
        change_config(tmp_path, intermediate_size=64)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(LoadBackError, match=r"lacks 1 tensor, the first is model\.norm\.weight"):
            check_loads_back(tmp_path, model)


@pytest.fixture
def saved_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models be saved with a config that says something else."""
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.save_pretrained

    def save_pretrained(self: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
        real(self, folder, *args, **kwargs)
        change_config(Path(folder), rms_norm_eps=0.5)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_pretrained)


@pytest.mark.usefixtures("saved_wrongly")
class TestRuns:
    @pytest.mark.parametrize("recipe", ["prune", "oneshot", "recover"])
    def test_a_result_that_loads_as_another_model_is_kept_beside(
        self, recipe: str, checkpoint: Path, data: Path, tmp_path: Path
    ) -> None:
        options = RunOptions(output=tmp_path / "out", latency=False, eval_sequences=0, report=False)
        run: Any = {
            "oneshot": partial(oneshot, config=OneshotConfig(ratio=0.3)),
            "recover": partial(recover, training=TRAINING),
            "prune": partial(prune, training=TRAINING),
        }[recipe]
        with pytest.raises(LoadBackError, match=rf"differ by .* It is in {tmp_path / 'out.new'}\.$"):
            run(checkpoint, data, options=options)
        assert not (tmp_path / "out").exists()
        assert (tmp_path / "out.new" / "pruning.json").is_file()

    def test_the_command_ends_with_1_and_shows_no_checkpoint_unless_told_not_to_look(
        self, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        asked = ["oneshot", str(checkpoint), "--data", str(data), "--ratio", "0.3", "--no-latency", "-o", str(out)]
        assert main([*asked, "--eval-sequences", "0"]) == 1
        shown = capsys.readouterr()
        assert "Checkpoint" not in shown.out
        assert "out.new" in shown.err
        assert main([*asked, "--eval-sequences", "0", "--no-verify", "--resume"]) == 0
        assert "Checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("free", [0, 1 << 62])
def test_without_memory_for_a_second_model_it_is_said_and_left_out(
    free: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from loraprune.recipes.steps import verify

    monkeypatch.setattr(verify, "free_memory", lambda device: free)
    with caplog.at_level("INFO", "loraprune"):
        assert (verify.load_back_check(RunOptions(), byte_model()) is None) is (free == 0)
    assert ("not enough memory to load the saved result" in caplog.text) is (free == 0)
    assert verify.load_back_check(RunOptions(verify=False), byte_model()) is None
