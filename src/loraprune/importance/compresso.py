"""Compresso: hard-concrete gates on the groups, learned together with LoRA under a target for the parameters.

Source: Guo et al. 2023 (arXiv 2310.05015), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from loraprune.importance.evidence.learned_gates import LearnedGates
from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

SPREAD = 0.05
"""Standard deviation of the initial ``log α``, which keeps any two groups of a layer from starting equal."""

MOST = 6.0
"""``log α`` stays within ±6, where the gradient of a gate is still large enough to move it."""


class CompressoCriterion:
    """The criterion ``compresso``: learns a gate on every group; the probability that it is open gives the score.

    The score of a group is ``P(z > 0)`` times its parameters, the expected number of parameters that it keeps.
    Allocations compare groups of different kinds per parameter, which leaves the probability itself. One multiplier
    for the whole model gives every parameter the same price, so scores compare across kinds and layers.

    Args:
        learning_rate, multiplier_learning_rate, warmup, ramp, initial_drop: see
            :class:`loraprune.importance.configs.Compresso`.
        seed: seed of the initial gates and of the samples.
    """

    comparable = True
    every_step = False

    def __init__(
        self,
        *,
        learning_rate: float,
        multiplier_learning_rate: float,
        warmup: float,
        ramp: str,
        initial_drop: float,
        seed: int = 0,
    ) -> None:
        self._rates = learning_rate, multiplier_learning_rate
        self._warmup, self._ramp = warmup, ramp
        self._initial_drop = initial_drop
        self.seed = seed
        self._structure: Structure | None = None
        self._gates: LearnedGates | None = None
        self._steps = 0
        self._step = 0
        self._ratio = 0.0

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Put gates on the consumers; the gates stay open until :meth:`begin`."""
        self._structure, self._gates = structure, LearnedGates(model, structure)
        counts = self._gates.num_groups()
        self._sizes = list(counts.values())
        per_group = {dimension.name: dimension.parameters_per_group for dimension in structure}
        self._parameters_G = torch.tensor([float(per_group[name]) for name in counts]).repeat_interleave(
            torch.tensor(self._sizes)
        )
        start = log_alpha_of(self._initial_drop)
        noise = torch.randn(sum(self._sizes), generator=self._generator(-1)) * SPREAD
        self.log_alpha_G = (start + noise).clamp_(-MOST, MOST).requires_grad_()
        self.multipliers = torch.zeros(2, requires_grad=True)
        self._optimizer = torch.optim.Adam(
            [
                {"params": [self.log_alpha_G], "lr": self._rates[0]},
                {"params": [self.multipliers], "lr": self._rates[1], "maximize": True},
            ]
        )

    def begin(self, steps: int, ratio: float) -> None:
        """Start learning: from now on the gates multiply their inputs.

        Args:
            steps: optimizer steps until the cut.
            ratio: share of the prunable parameters to remove.
        """
        self._steps, self._ratio = steps, ratio
        self._sample()

    def _generator(self, step: int) -> torch.Generator:
        # Seeded by step, so a resumed run draws what the uninterrupted run draws.
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step + 1) % 2**63)

    def _named(self, values_G: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self._gates is not None
        return dict(zip(self._gates.num_groups(), values_G.split(self._sizes), strict=True))

    def _uniform(self) -> torch.Tensor:
        eps = torch.finfo(torch.float32).eps
        uniform = torch.rand(len(self.log_alpha_G), generator=self._generator(self._step))
        return uniform.clamp_(eps, 1.0 - eps)

    @torch.no_grad()
    def _sample(self) -> None:
        assert self._gates is not None
        sampled = sampled_gates(self.log_alpha_G, self._uniform())
        self._gates.set(self._named(sampled), self._named(expected_gates(self.log_alpha_G)))

    def expected_ratio(self) -> torch.Tensor:
        """Share of the prunable parameters that the gates are expected to remove, differentiable in ``log α``."""
        assert self._structure is not None
        kept = expected_parameters(keep_probability(self.log_alpha_G), self._parameters_G)
        return (self._parameters_G.double().sum() - kept) / self._structure.prunable_parameters

    def learn(self, usable: bool = True) -> None:
        """Update the gates after the backward passes of a step, and sample the gates of the next step.

        The gradient is that of ``loss + λ₁·(ŝ − t) + λ₂·(ŝ − t)²``. The loss depends on ``log α`` only through the
        sample, and the other terms depend only on ``log α``. The two parts are computed separately and added here.

        Args:
            usable: whether loss and gradients of the step are finite; otherwise the step teaches nothing.
        """
        assert self._gates is not None
        gradients = self._gates.take()
        if usable and gradients is not None:
            target = target_at(self._step, self._steps, self._ratio, self._warmup, self._ramp)
            sampled = sampled_gates(self.log_alpha_G, self._uniform())
            through_loss = (sampled * torch.cat(list(gradients.values()))).sum()
            (through_loss + lagrangian(self.expected_ratio(), target, self.multipliers)).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            with torch.no_grad():
                self.log_alpha_G.clamp_(-MOST, MOST)
        self._step += 1
        self._sample()

    @torch.no_grad()
    def scores(self, plan: Plan) -> Scores | None:
        """Return ``P(z > 0)`` times the parameters of each group, with ``P = 1`` in protected layers."""
        assert self._structure is not None
        scores = {
            dimension.name: torch.full((plan.count(dimension.name),), float(dimension.parameters_per_group))
            for dimension in self._structure
        }
        return scores | self._named(keep_probability(self.log_alpha_G) * self._parameters_G)

    @torch.no_grad()
    def gates(self) -> dict[str, torch.Tensor]:
        """Return the gates of evaluation mode, one value per group."""
        return self._named(expected_gates(self.log_alpha_G))

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that has been learned, for a checkpoint."""
        tensors = {
            "log_alpha": self.log_alpha_G.detach().clone(),
            "multipliers": self.multipliers.detach().clone(),
            "step": torch.tensor(self._step),
        }
        for name, parameter in (("log_alpha", self.log_alpha_G), ("multipliers", self.multipliers)):
            tensors |= {f"{name}/{key}": value.clone() for key, value in self._optimizer.state[parameter].items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from what :meth:`state` returned; call this after :meth:`begin`."""
        self._step = int(tensors["step"])
        for name, parameter in (("log_alpha", self.log_alpha_G), ("multipliers", self.multipliers)):
            parameter.copy_(tensors[name])
            prefix = f"{name}/"
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:
                self._optimizer.state[parameter] = state
        self._sample()

    def detach(self) -> None:
        """Remove the gates."""
        if self._gates is not None:
            self._gates.remove()


# The hard-concrete distribution: gates between 0 and 1 that are exactly 0 or 1 with a learnable probability.
#
# Source: Louizos, Welling and Kingma 2018 (arXiv 1712.01312), Eq. 10 to 13.

TEMPERATURE = 2 / 3
"""β: how close to 0 and 1 the gates lie."""

LOWEST, HIGHEST = -0.1, 1.1
"""γ and ζ: the interval that a gate is stretched to before it is clamped to [0, 1]."""


def sampled_gates(log_alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Sample each gate, differentiably in ``log_alpha``.

    Args:
        log_alpha: location of each gate: the higher, the more likely it is open.
        uniform: samples from (0, 1), same shape.
    """
    noise = uniform.log() - (-uniform).log1p()
    return _stretched(((noise + log_alpha) / TEMPERATURE).sigmoid())


def expected_gates(log_alpha: torch.Tensor) -> torch.Tensor:
    """Return the gates for evaluation: no sampling, and exactly 0 or 1 if a gate is certain."""
    return _stretched(log_alpha.sigmoid())


def keep_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """``P(z > 0) = sigmoid(log α − β·log(−γ/ζ))``."""
    return (log_alpha - TEMPERATURE * math.log(-LOWEST / HIGHEST)).sigmoid()


def log_alpha_of(drop: float) -> float:
    """Return ``log α = logit(1 − drop)``: the initial location of gates that are closed with probability ``drop``."""
    return math.log((1.0 - drop) / drop)


def _stretched(values: torch.Tensor) -> torch.Tensor:
    return (values * (HIGHEST - LOWEST) + LOWEST).clamp(0.0, 1.0)


# The constraint that the expected share of removed parameters reaches a target, as a Lagrangian.
#
# Source: Wang, Wohlwend and Lei 2020 (arXiv 1910.04732), as in CoFi (Xia et al. 2022, arXiv 2204.00408) and Compresso
# (arXiv 2310.05015).


def expected_parameters(probabilities_G: torch.Tensor, parameters_G: torch.Tensor) -> torch.Tensor:
    """``Σ_g P(z_g > 0) · parameters of g``, a scalar in 64 bits: a model may have 1e11 parameters."""
    return (probabilities_G.double() * parameters_G.double()).sum()


def lagrangian(removed: torch.Tensor, target: float, multipliers: torch.Tensor) -> torch.Tensor:
    """``λ₁·(ŝ − t) + λ₂·(ŝ − t)²``: added to the loss, minimized over the gates and maximized over the multipliers.

    Args:
        removed: expected share ``ŝ`` of removed parameters, a scalar.
        target: ``t``.
        multipliers: ``λ₁`` and ``λ₂``.
    """
    excess = removed - target
    return multipliers[0] * excess + multipliers[1] * excess.square()


def target_at(step: int, steps: int, ratio: float, warmup: float, ramp: str) -> float:
    """Target at a step (counted from 0): rises from 0 to ``ratio`` over the first ``warmup`` of ``steps``."""
    rising = warmup * steps
    progress = min(step / rising, 1.0) if rising else 1.0
    return ratio * (progress if ramp == "linear" else 1.0 - (1.0 - progress) ** 3)
