"""Loss of distillation: divergence from a teacher's predictions and cross-entropy, with the gradient of both."""

from __future__ import annotations

from typing import Any

import torch

from loraprune.metrics.perplexity import IGNORED

_TOKENS_AT_ONCE = 512


class _SummedLoss(torch.autograd.Function):
    """``share · KL(teacher ‖ student) + (1 − share) · cross-entropy``, summed over tokens.

    The gradient of both has a closed form, ``softmax(student) − share · softmax(teacher) − (1 − share) ·
    onehot(label)``. Only the student's logits and one tensor of the same size stay in memory.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        """Sum the loss and store its gradient."""
        student_BTV, teacher_BTV, labels_BT, share = given
        gradient_BTV = torch.zeros_like(student_BTV)
        total = torch.zeros((), device=student_BTV.device)
        for student, teacher, labels, gradient in zip(student_BTV, teacher_BTV, labels_BT, gradient_BTV, strict=True):
            for tokens in (labels != IGNORED).nonzero()[:, 0].split(_TOKENS_AT_ONCE):
                logs = student[tokens].float().log_softmax(-1)
                wanted = teacher[tokens].float().log_softmax(-1)
                chances = wanted.exp()
                right = labels[tokens, None]
                total += share * (chances * (wanted - logs)).sum()
                total -= (1 - share) * logs.gather(-1, right).sum()
                change = logs.exp_().sub_(chances, alpha=share)
                change.scatter_add_(-1, right, change.new_full(right.shape, share - 1))
                gradient[tokens] = change.to(gradient)
        ctx.save_for_backward(gradient_BTV)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Scale the stored gradient."""
        (gradient_BTV,) = ctx.saved_tensors
        return gradient_BTV * gradients[0].to(gradient_BTV), None, None, None


def summed_loss(
    student_BTV: torch.Tensor, teacher_BTV: torch.Tensor, labels_BT: torch.Tensor, share: float
) -> torch.Tensor:
    """Compute ``share · KL(teacher ‖ student) + (1 − share) · cross-entropy``, summed over the tokens with a label.

    Args:
        student_BTV: logits, with a gradient.
        teacher_BTV: logits of the same shape.
        labels_BT: correct token at each position, int64; -100 if the position is ignored.
        share: weight of the divergence, in [0, 1].

    Source: Hinton et al. (arXiv 1503.02531), forward divergence at temperature 1, as in Minitron (arXiv 2407.14679).
    """
    total: torch.Tensor = _SummedLoss.apply(student_BTV, teacher_BTV, labels_BT, share)  # type: ignore[no-untyped-call]
    return total
