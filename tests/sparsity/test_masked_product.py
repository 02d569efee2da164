import pytest
import torch
from torch.nn import functional as F

from loraprune.sparsity.masked_product import keep_zeros, masked_product, packed, unpacked


def matrices(*, ranks=(2, 3), dtype=torch.float64, transposed=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight = normal(5, 7) * (normal(5, 7) > 0)
    x = normal(2, 4, 7).requires_grad_()
    factors = [(normal(r, 7).requires_grad_(), normal(5, r).requires_grad_(), 0.5 + r) for r in ranks]
    return x, weight.T.contiguous().T if transposed else weight, factors


def reference(x, weight, factors, add_weight):
    mask = (weight != 0).to(x.dtype)
    update = sum(s * (b @ a) for a, b, s in factors)
    return F.linear(x, ((weight if add_weight else 0) + update) * mask)


@pytest.mark.parametrize("add_weight", [False, True])
@pytest.mark.parametrize("ranks", [(2,), (2, 3)], ids=["one adapter", "two adapters"])
@pytest.mark.parametrize("transposed", [False, True])
def test_value_and_gradients_are_those_of_the_dense_formula(add_weight, ranks, transposed):
    x, weight, factors = matrices(ranks=ranks, transposed=transposed)
    leaves = [x, *(tensor for a, b, _ in factors for tensor in (a, b))]
    expected = reference(x, weight, factors, add_weight)
    actual = masked_product(x, weight, factors, add_weight=add_weight)
    torch.testing.assert_close(actual, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    for ours, theirs in zip(
        torch.autograd.grad(actual, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_agree_with_finite_differences():
    x, weight, [(a, b, scaling)] = matrices(ranks=(2,))
    assert torch.autograd.gradcheck(lambda x, a, b: masked_product(x, weight, [(a, b, scaling)]), (x, a, b))
    assert torch.autograd.gradcheck(lambda d: keep_zeros(d, weight), (b.detach() @ a.detach()).requires_grad_())


def test_a_frozen_factor_gets_no_gradient_and_the_others_theirs():
    x, weight, [(a, b, scaling)] = matrices(ranks=(2,))
    masked_product(x.detach(), weight, [(a.detach(), b, scaling)]).sum().backward()
    assert b.grad is not None
    assert a.grad is None
    assert x.grad is None


def test_only_the_input_and_the_factors_are_kept_for_the_backward_pass():
    x, weight, factors = matrices()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        masked_product(x, weight, factors, add_weight=True)
        keep_zeros(weight.clone().requires_grad_(), weight)
    assert kept == [x.shape, *(tensor.shape for a, b, _ in factors for tensor in (a, b))]


def test_under_autocast_the_product_is_in_16_bits_and_the_gradients_in_the_factors_dtype():
    x, weight, factors = matrices(dtype=torch.float32)
    expected = reference(x, weight, factors, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = masked_product(x, weight, factors)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0.1)
    actual.float().square().sum().backward()
    assert {x.grad.dtype, factors[0][0].grad.dtype} == {torch.float32}


def test_factors_in_32_bits_go_with_an_input_in_16():
    x, weight, factors = matrices(dtype=torch.float32)
    expected = torch.autograd.grad(reference(x, weight, factors, False).sum(), factors[0][1])[0]
    actual = masked_product(x.bfloat16(), weight.bfloat16(), factors)
    assert actual.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(actual.float().sum(), factors[0][1])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.1)


def test_an_update_that_is_not_finite_leaves_zeros_alone():
    weight = torch.tensor([[0.0, 1.0]])
    values = torch.tensor([[float("inf"), float("nan")]])
    assert keep_zeros(values, weight)[0, 0] == 0


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 4, 8)])
def test_a_packed_mask_takes_a_bit_an_entry_and_comes_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.5
    small = packed(mask)
    assert small.nbytes == -(-mask.numel() // 8)
    assert torch.equal(unpacked(small, mask.shape), mask)
