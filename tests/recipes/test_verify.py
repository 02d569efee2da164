from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny_checkpoint
from tests.models import tiny_model

import loraprune
from loraprune import OneshotConfig, Plan, RunOptions, cut_
from loraprune.cli.main import main
from loraprune.record.checksums import checksums
from loraprune.record.run_record import RunRecord

WEIGHTS = "model.safetensors"
NAMES = ["checksums", "weights", "shapes", "forward pass"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    tiny_checkpoint(folder / "dense")
    loraprune.oneshot(
        folder / "dense",
        config=OneshotConfig(criterion="magnitude", ratio=0.5, repair="none"),
        options=RunOptions(output=folder / "out", eval_sequences=0, report=False, latency=False),
    )
    return folder / "out"


@pytest.fixture
def out(result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result, tmp_path / "out"))


def keep_new_checksums(out: Path) -> None:
    record = json.loads((out / "pruning.json").read_text())
    (out / "pruning.json").write_text(json.dumps({**record, "checksums": checksums(out)}))


def poison(out: Path) -> None:
    tensors = load_file(out / WEIGHTS)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    keep_new_checksums(out)


def drop_a_layer(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    config.pop("layer_types", None)
    (out / "config.json").write_text(json.dumps(config))


def widen(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    config["intermediate_size"] += 1
    (out / "config.json").write_text(json.dumps(config))


def flip_a_bit(out: Path) -> None:
    content = bytearray((out / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (out / WEIGHTS).write_bytes(content)


def cut_short(out: Path) -> None:
    (out / WEIGHTS).write_bytes((out / WEIGHTS).read_bytes()[:-100])


def remove_weights(out: Path) -> None:
    (out / WEIGHTS).unlink()


def remove_config(out: Path) -> None:
    (out / "config.json").unlink()


def damage_the_record(out: Path) -> None:
    (out / "pruning.json").write_text("{")


def test_a_result_is_whole_and_keeps_its_checksums(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RunRecord.read(out).checksums == checksums(out)
    facts = loraprune.verify(out)
    assert [(fact.name, fact.passed) for fact in facts] == [(name, True) for name in NAMES]
    assert main(["verify", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == NAMES
    assert lines[0] == "checksums:    ok, 1 file as written"


@pytest.mark.parametrize(
    ("damage", "failed"),
    [
        (poison, {"weights": "model.norm.weight holds 1 NaN", "forward pass": "NaN"}),
        (drop_a_layer, {"shapes": "have 2 layers (model.layers), but its config says 1"}),
        (widen, {"shapes": "shapes differ from its config.json"}),
        (flip_a_bit, {"checksums": "model.safetensors is not the file that was written"}),
        (cut_short, {"checksums": "is not the file", "weights": "", "shapes": "cannot be loaded"}),
        (remove_weights, {"checksums": "model.safetensors is missing", "weights": "no weights", "shapes": ""}),
        (remove_config, {"shapes": "no config.json"}),
        (damage_the_record, {"checksums": "damaged"}),
    ],
)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None], failed: dict[str, str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(out)
    found = {fact.name: fact.text for fact in loraprune.verify(out) if not fact.passed}
    assert found.keys() == failed.keys()
    for name, text in failed.items():
        assert text in found[name]
    assert main(["verify", str(out)]) == 1
    assert capsys.readouterr().out.count("FAILED") == len(failed)


def test_an_older_result_keeps_no_checksums(out: Path) -> None:
    record = json.loads((out / "pruning.json").read_text())
    del record["checksums"]
    (out / "pruning.json").write_text(json.dumps(record))
    first = loraprune.verify(out)[0]
    assert (first.passed, first.text) == (True, "no checksums saved")


def test_a_ragged_result_of_save_is_whole(tmp_path: Path) -> None:
    model = tiny_model(attention="sdpa")
    cut_(model, Plan({"layers.0.heads": (1, 2)}))
    out = loraprune.save(model, tmp_path / "ragged", dtype=torch.bfloat16)
    assert [(fact.name, fact.passed) for fact in loraprune.verify(out)] == [(name, True) for name in NAMES]
    assert RunRecord.read(out).checksums == checksums(out)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        loraprune.verify(tmp_path / "nowhere")
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
