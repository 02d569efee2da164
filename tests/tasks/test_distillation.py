from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import loraprune.metrics.distillation_loss as losses
from loraprune.metrics.distillation_loss import summed_loss
from loraprune.metrics.perplexity import IGNORED
from loraprune.tasks.distillation import Teacher, distilling

VOCABULARY = 11


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 7, VOCABULARY, generator=generator).to(dtype) for _ in range(2))
    labels = torch.randint(VOCABULARY, (2, 7), generator=generator)
    labels[0, :3] = labels[1, -1] = IGNORED
    return student.requires_grad_(), teacher, labels


def by_torch(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    counted = labels != IGNORED
    logs = student[counted].float().log_softmax(-1)
    divergence = kl_div(logs, teacher[counted].float().log_softmax(-1), reduction="sum", log_target=True)
    return share * divergence + (1 - share) * cross_entropy(student[counted].float(), labels[counted], reduction="sum")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_loss_and_gradient_are_those_of_torch(share: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_TOKENS_AT_ONCE", at_once)
    student, teacher, labels = example()
    loss = summed_loss(student, teacher, labels, share)
    wanted = by_torch(student, teacher, labels, share)
    torch.testing.assert_close(loss, wanted)
    (found,) = torch.autograd.grad(3 * loss, student)
    (expected,) = torch.autograd.grad(3 * wanted, student)
    torch.testing.assert_close(found, expected)


def test_gradients_in_16_bits_are_of_that_dtype() -> None:
    student, teacher, labels = example(torch.bfloat16)
    summed_loss(student, teacher, labels, 0.5).backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
    assert bool((student.grad[0, :3] == 0).all())


class _Usual:
    """Stands in for a Trainer: tells when its own loss is asked for."""

    def compute_loss(self, *given: Any) -> str:
        return "usual"


def _model(logits: torch.Tensor) -> Any:
    class Model(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            assert "labels" not in given
            return SimpleNamespace(logits=logits)

    return Model()


def test_the_loss_is_a_mean_over_the_tokens_of_the_whole_step() -> None:
    student, teacher, labels = example()
    trainer: Any = distilling(_Usual, Teacher(model=_model(teacher), share=0.4))()  # type: ignore[arg-type]
    inputs = {"input_ids": labels, "labels": labels}
    wanted = by_torch(student[:, :-1], teacher[:, :-1], labels[:, 1:], 0.4)
    loss = trainer.compute_loss(_model(student), inputs)
    torch.testing.assert_close(loss, wanted / (labels[:, 1:] != IGNORED).sum())
    torch.testing.assert_close(trainer.compute_loss(_model(student), inputs, num_items_in_batch=50), wanted / 50)


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("return_outputs", [True, False])
def test_a_teacher_is_followed_while_it_is_heard_and_in_training_alone(
    heard: bool, training: bool, return_outputs: bool
) -> None:
    student, teacher, labels = example()
    trainer: Any = distilling(_Usual, Teacher(model=_model(teacher), share=1.0, is_heard=lambda: heard))()  # type: ignore[arg-type]
    inputs = {"input_ids": labels, "labels": labels}
    loss = trainer.compute_loss(_model(student).train(training), inputs, return_outputs)
    assert (loss == "usual") is not (heard and training and not return_outputs)
