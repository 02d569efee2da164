from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tasks.models import LABELS, learned_images, opinions, reversals, tiny_vit
from tests.tasks.test_classification import IMAGES, image_rows, mnist, pixels, processor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from loraprune import OneshotConfig, OneshotResult, RunOptions, oneshot

CHANCE = 1 / LABELS
Split = tuple[Dataset, Dataset]


def run(
    model: Any, data: Any, *, eval_data: Any = None, output: Path | None = None, processor: Any = None, **values: Any
) -> OneshotResult:
    config = OneshotConfig(**{"calibration_sequences": 64, **values})
    options = RunOptions(eval_data=eval_data, output=output, latency=False)
    return oneshot(model, data, config, options=options, image_processor=processor)


def zeros(model: PreTrainedModel, result: OneshotResult) -> dict[str, float]:
    """Share of zeros in every matrix that was made sparse, counted in the model itself."""
    return {
        matrix.name: float((model.get_submodule(matrix.name).weight == 0).float().mean()) for matrix in result.matrices
    }


class TestImages:
    @pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
    def test_half_of_the_weights_go_and_most_digits_are_still_read(
        self, method: str, image_checkpoint: Path, digit_images: Split, tmp_path: Path
    ) -> None:
        train, test = digit_images
        result = run(image_checkpoint, train, criterion=method, sparsity=0.5, eval_data=test, output=tmp_path / "out")
        dense, pruned = result.metrics["dense"], result.metrics["pruned"]
        assert dense["accuracy"] > 0.85
        assert pruned["accuracy"] > 5 * CHANCE
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        shares = zeros(loaded, result)
        assert len(shares) >= 4
        for matrix in result.matrices:
            one = matrix.weights // loaded.get_submodule(matrix.name).weight.shape[1] / matrix.weights
            assert shares[matrix.name] == pytest.approx(0.5, abs=one), matrix.name
            assert shares[matrix.name] == matrix.sparsity
        with torch.no_grad():
            right = (loaded(pixel_values=pixels(test)).logits.argmax(1) == torch.tensor(test["label"])).float().mean()
        assert pruned["accuracy"] == pytest.approx(float(right), abs=1e-6)

    def test_only_linear_layers_of_the_blocks_are_touched(self, image_checkpoint: Path, digit_images: Split) -> None:
        before = AutoModelForImageClassification.from_pretrained(image_checkpoint)
        result = run(image_checkpoint, digit_images[0], criterion="wanda", sparsity="2:4")
        sparse = {f"{matrix.name}.weight" for matrix in result.matrices}
        for name, value in result.model.state_dict().items():
            assert torch.equal(value, before.state_dict()[name]) != (name in sparse), name
        for name in sparse:
            weight = result.model.get_parameter(name)
            assert bool(((weight.view(len(weight), -1, 4) == 0).sum(-1) == 2).all()), name

    def test_wanda_looks_at_the_images(self, image_checkpoint: Path, digit_images: Split) -> None:
        train = digit_images[0]
        results = [run(image_checkpoint, train, criterion="wanda", sparsity=0.5, seed=seed) for seed in (1, 1, 2)]
        masks = [
            {m.name: result.model.get_submodule(m.name).weight == 0 for m in result.matrices} for result in results
        ]
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
        assert not all(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])

    def test_magnitude_needs_no_images(self, image_checkpoint: Path, digit_images: Split) -> None:
        result = run(image_checkpoint, None, criterion="magnitude", sparsity=0.5, eval_data=digit_images[1])
        assert result.metrics["sparsity"]["reached"] == pytest.approx(0.5, abs=1e-3)
        assert result.metrics["pruned"]["num_examples"] == len(digit_images[1])

    @pytest.mark.parametrize("method", ["fisher", "osscar"])
    def test_heads_and_channels_go(self, method: str, image_checkpoint: Path, digit_images: Split) -> None:
        train, test = digit_images
        result = run(image_checkpoint, train, criterion=method, ratio=0.3, repair="refit", eval_data=test)
        assert result.metrics["pruning"]["ratio"] == pytest.approx(0.3, abs=0.06)
        assert result.model.num_parameters() == result.metrics["pruned"]["parameters"]
        assert result.metrics["pruned"]["accuracy"] > 5 * CHANCE

    def test_pictures_go_through_the_image_processor_which_is_saved_too(
        self, digit_images: Split, tmp_path: Path
    ) -> None:
        model = tiny_vit(image_size=16, patch_size=4)
        rows = image_rows(digit_images[0], 100)
        result = run(model, rows, criterion="wanda", sparsity=0.5, processor=processor(16), output=tmp_path / "out")
        assert ViTImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 16
        card = (tmp_path / "out" / "README.md").read_text()
        assert "`AutoModelForImageClassification.from_pretrained`" in card
        assert f"| accuracy ({result.metrics['pruned']['num_examples']} held-out images) |" in card

    def test_a_text_is_not_asked_of_images(self, image_checkpoint: Path, digit_images: Split) -> None:
        options = RunOptions(prompt="once")
        with pytest.raises(ValueError, match="You passed a prompt"):
            oneshot(image_checkpoint, digit_images[0], OneshotConfig(sparsity=0.5), options=options)


class TestTexts:
    @pytest.mark.parametrize("values", [{"sparsity": "2:4"}, {"criterion": "wanda", "sparsity": 0.5}], ids=str)
    def test_a_sparse_classifier_is_nearly_as_right_as_the_dense_one(
        self, values: dict[str, Any], text_checkpoint: Path, tmp_path: Path
    ) -> None:
        held_out = opinions(300, seed=9)
        result = run(text_checkpoint, opinions(600), eval_data=held_out, output=tmp_path / "out", **values)
        dense, pruned = result.metrics["dense"], result.metrics["pruned"]
        assert pruned["accuracy"] > dense["accuracy"] - 0.1
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert set(zeros(loaded, result).values()) == {0.5}
        assert not bool((loaded.classifier.weight == 0).any())

    def test_encoder_and_decoder_become_sparse(self, pair_checkpoint: Path, tmp_path: Path) -> None:
        result = run(pair_checkpoint, reversals(300), sparsity="2:4", output=tmp_path / "out")
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
        shares = zeros(loaded, result)
        assert {name.partition(".")[0] for name in shares} == {"encoder", "decoder"}
        assert set(shares.values()) == {0.5}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs ../shared/data/images")
def test_real_handwriting_is_read_with_half_of_the_weights() -> None:
    """Images of MNIST's test set, split into rows to learn and calibrate on and rows to measure on."""
    rows = mnist(3000).train_test_split(test_size=500, seed=0)
    read = ViTImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.5], image_std=[0.5])
    torch.manual_seed(0)
    train = read([row["image"] for row in rows["train"]], return_tensors="pt")["pixel_values"]
    learned = Dataset.from_dict({"pixel_values": train.numpy(), "label": rows["train"]["label"][:]})
    model = learned_images(tiny_vit(image_size=28, patch_size=7), learned, steps=500)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("wanda", "magnitude"):
        model.load_state_dict(weights)
        values = {"method": method, "sparsity": 0.5, "processor": read, "calibration_sequences": 128}
        result = run(model, rows["train"], eval_data=rows["test"], **values)
        assert result.metrics["dense"]["accuracy"] > 0.75
        assert result.metrics["pruned"]["accuracy"] > result.metrics["dense"]["accuracy"] - 0.3
        assert result.metrics["pruned"]["accuracy"] > 4 * CHANCE
        assert all(matrix.sparsity == pytest.approx(0.5, abs=1e-3) for matrix in result.matrices)
