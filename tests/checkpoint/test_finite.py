from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoints import byte_model
from torch import nn

from loraprune import NonFiniteWeightsError, save
from loraprune.checkpoint.finite import check_finite, check_finite_tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_finite_numbers_of_every_kind_pass(dtype: torch.dtype) -> None:
    check_finite_tensors([("a", torch.tensor([[1.0, -2.0]]).to(dtype)), ("empty", torch.empty(0, dtype=dtype))])
    check_finite_tensors([("ids", torch.tensor([1])), ("mask", torch.tensor([True]))])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_single_number_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    tensor[1, 2] = value
    with pytest.raises(NonFiniteWeightsError, match=r"^b holds [01] NaN and [01] Inf"):
        check_finite_tensors([("a", torch.ones(2)), ("b", tensor)])


def test_the_message_counts_names_the_others_and_says_what_to_do() -> None:
    first = torch.full((1000, 2), float("nan"))
    first[0] = torch.tensor([float("inf"), 1.0])
    with pytest.raises(NonFiniteWeightsError) as found:
        check_finite_tensors([("w", first), ("v", torch.tensor([float("inf")])), ("u", torch.ones(1))])
    assert str(found.value).startswith(
        "w holds 1,998 NaN and 1 Inf (float32), as do 1 other tensors: nothing was saved. "
    )
    with pytest.raises(NonFiniteWeightsError, match=r"float16 cannot represent numbers above 65,504.*--dtype bfloat16"):
        check_finite_tensors([("w", torch.tensor([1e6]).half())])


def test_a_model_is_looked_through_with_its_buffers() -> None:
    model = nn.BatchNorm1d(2)
    check_finite(model)
    model.running_var[0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match="running_var"):
        check_finite(model)


def test_nothing_on_the_disk_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(byte_model(), out)
    before = (out / "model.safetensors").read_bytes()
    model = byte_model()
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"model\.embed_tokens\.weight holds 1 NaN and 0 Inf"):
        save(model, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_torchao_keeps_in_8_bits_are_looked_at_as_what_they_stand_for() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert type(model[0].weight) is not nn.Parameter
    check_finite(model)
