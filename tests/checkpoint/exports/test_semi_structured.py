from __future__ import annotations

import pytest
import torch
from tests.checkpoint.exports.two_four import linear_layers, make_two_four_
from tests.models import tiny_model
from torch import nn

from loraprune.checkpoint.exports import semi_structured
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.semi_structured import check_semi_structured, to_semi_structured_

ROWS, COLUMNS = 16, 16
"""What the stand-in's shapes must be multiples of, as cuSPARSELt's in 16 bits."""


class Stored(torch.Tensor):
    """Stands in for a semi-structured tensor."""


def stand_in(weight: torch.Tensor) -> torch.Tensor:
    if weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        raise RuntimeError(f"{tuple(weight.shape)} is not supported!\nsecond line")
    return weight.detach().clone().as_subclass(Stored)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.device, torch.dtype]]:
    """Hardware that takes everything; returns what it was asked about."""
    asked: list[tuple[torch.device, torch.dtype]] = []
    monkeypatch.setattr(semi_structured, "check_semi_structured", lambda *question: asked.append(question))
    monkeypatch.setattr(semi_structured, "_semi_structured", stand_in)
    return asked


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU of compute capability 9.0, as far as torch's answers go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(semi_structured, "_multiplies_right", lambda device, dtype: True)
    return monkeypatch


def sparse_model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    model = tiny_model(intermediate_size=32).to(dtype)
    for layer in linear_layers(model).values():
        make_two_four_(layer.weight)
    return model


def test_a_machine_without_cuda_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeFormatError, match="need a CUDA device, but torch finds none"):
        check_semi_structured()


def test_another_device_than_a_gpu_is_named(gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeFormatError, match="need a CUDA device, but the device is cpu"):
        check_semi_structured("cpu")


def test_an_older_gpu_is_named_with_its_capability(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RuntimeFormatError, match=r"capability 8\.0 \(Ampere\) or more, but Some GPU has 7\.5"):
        check_semi_structured()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_more_than_16_bits_are_refused(gpu: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeFormatError, match=f"the weights are {str(dtype).split('.')[1]}. Load the model with"):
        check_semi_structured("cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_that_multiplies_right_passes(gpu: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    check_semi_structured("cuda", dtype)


def test_what_torch_says_of_a_gpu_that_it_cannot_use_is_passed_on(gpu: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device, dtype: torch.dtype) -> bool:
        raise RuntimeError("Supported only on GPUs with compute capability 8.x\nmore")

    gpu.setattr(semi_structured, "_multiplies_right", fails)
    with pytest.raises(RuntimeFormatError, match=r"on Some GPU: Supported only on GPUs .* 8\.x The plain") as refused:
        check_semi_structured()
    assert "more" not in str(refused.value)


def test_a_gpu_that_multiplies_wrong_is_refused(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(semi_structured, "_multiplies_right", lambda device, dtype: False)
    with pytest.raises(RuntimeFormatError, match="wrong products of semi-structured tensors on Some GPU"):
        check_semi_structured()


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.5, False)])
def test_the_trial_product_is_compared(monkeypatch: pytest.MonkeyPatch, factor: float, right: bool) -> None:
    monkeypatch.setattr(semi_structured, "_semi_structured", lambda weight: weight * factor)
    assert semi_structured._multiplies_right(torch.device("cpu"), torch.bfloat16) is right


def test_every_sparse_layer_is_replaced_and_the_rest_stays(
    hardware: list[tuple[torch.device, torch.dtype]],
) -> None:
    model = sparse_model()
    before = {name: layer.weight.clone() for name, layer in linear_layers(model).items()}
    assert to_semi_structured_(model) == len(before)
    assert hardware == [(torch.device("cpu"), torch.bfloat16)]
    for name, layer in linear_layers(model).items():
        assert isinstance(layer.weight.data, Stored)
        assert not layer.weight.requires_grad
        assert torch.equal(layer.weight.as_subclass(torch.Tensor), before[name])
    assert not isinstance(model.lm_head.weight.data, Stored)


def test_a_layer_of_a_shape_that_the_hardware_does_not_take_stays_dense(
    hardware: list[tuple[torch.device, torch.dtype]],
) -> None:
    odd = nn.Linear(COLUMNS, ROWS + 1, dtype=torch.bfloat16)
    make_two_four_(odd.weight)
    model = sparse_model()
    assert to_semi_structured_(nn.ModuleList([odd, model])) == len(linear_layers(model))
    assert not isinstance(odd.weight.data, Stored)
    assert all(isinstance(layer.weight.data, Stored) for layer in linear_layers(model).values())


def test_torchs_reason_is_given_where_no_layer_can_be_replaced(
    hardware: list[tuple[torch.device, torch.dtype]],
) -> None:
    layer = nn.Linear(8, 8, dtype=torch.bfloat16)
    make_two_four_(layer.weight)
    with pytest.raises(RuntimeFormatError, match=r"none of the 1 2:4-sparse layers: \(8, 8\) is not supported!$"):
        to_semi_structured_(nn.Sequential(layer))


def test_a_dense_model_is_refused(hardware: list[tuple[torch.device, torch.dtype]]) -> None:
    with pytest.raises(RuntimeFormatError, match="No linear layer of the model is 2:4-sparse"):
        to_semi_structured_(tiny_model())
    assert hardware == []


def test_a_model_on_the_cpu_is_refused_and_stays_as_it_was() -> None:
    model = sparse_model()
    with pytest.raises(RuntimeFormatError, match="the device is cpu"):
        to_semi_structured_(model)
    assert all(type(layer.weight) is nn.Parameter for layer in linear_layers(model).values())
