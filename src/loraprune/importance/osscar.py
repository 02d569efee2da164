"""Greedy elimination by the refit error: which groups, once removed and refitted, cost the output least."""

from __future__ import annotations

import torch

from loraprune.calibration.least_squares import (
    DAMPING_ATTEMPTS,
    LEAST_RAISED_DAMPING,
    NotPositiveDefiniteError,
    damped_cholesky,
)

MOST_ROUNDS = 256
LETS_GO = 8
"""Number of times, evenly spaced, that an elimination drops the columns that it has removed."""
WIDEST_IN_64_BITS = 2048
"""Inputs of the widest layer that is computed in 64 bits."""
_MOST_PUT_BY = 64
# At least two rounding steps of 32 bits, so that scores which differ by as much stay apart.
TIE_BREAK = 2.0**-22
# Smaller shares of the largest error are rounding errors.
_FLOOR = 2.0**-50


class _Elimination:
    """The consumer refitted to the remaining columns, and the inverse of their damped second moment.

    Columns are ordered by group, so the blocks of all groups are views. Columns of no group come last and stay.
    The updates of the two matrices are collected and subtracted together: one large product is faster than many thin
    ones. (In 32 bits, and for groups of several columns, they are subtracted immediately.) Columns of removed groups
    hold rounding errors; they are dropped once there are enough of them.

    Args:
        weight_OI: weight of the consumer.
        inverse_II: ``P``; modified in place.
        groups: number of groups.
        size: number of columns per group.
    """

    def __init__(self, weight_OI: torch.Tensor, inverse_II: torch.Tensor, groups: int, size: int) -> None:
        self.weight_IO, self.inverse_II = weight_OI.T.contiguous(), inverse_II
        self.groups, self.size = groups, size
        self.numbers_G = torch.arange(groups, device=weight_OI.device)
        self.removed_G = torch.zeros(groups, dtype=torch.bool, device=weight_OI.device)
        self.broken = torch.zeros((), dtype=torch.bool, device=weight_OI.device)
        self._begin()

    def _begin(self) -> None:
        """Start with no collected updates: ``P`` and ``W`` are ``inverse_II`` and ``weight_IO``."""
        self.taken_DI, self.given_DO = self.inverse_II[:0], self.weight_IO[:0]
        self.diagonal_I, self.squares_I = self.inverse_II.diagonal().clone(), self.weight_IO.square().sum(1)

    def _settle(self) -> None:
        """Subtract the collected updates."""
        self.weight_IO.addmm_(self.taken_DI.T, self.given_DO, alpha=-1)
        self.inverse_II.addmm_(self.taken_DI.T, self.taken_DI, alpha=-1)
        self._begin()

    def _factor(self, blocks: torch.Tensor) -> torch.Tensor:
        """Cholesky factors; a failure is only recorded, because reading it would synchronize with the device."""
        factor, info = torch.linalg.cholesky_ex(blocks)
        self.broken |= (info != 0).any()
        return factor

    def errors(self) -> torch.Tensor:
        """``tr(W_g (P_gg)⁻¹ W_gᵀ)``: current cost of removing each group; infinite for removed groups."""
        by_group = (self.groups, self.size)
        length = self.groups * self.size
        if self.size == 1:  # thousands of 1×1 factors
            diagonal_G = self.diagonal_I[:length].masked_fill(self.removed_G, 1)
            self.broken |= (diagonal_G <= 0).any()
            errors_G = self.squares_I[:length].clamp_min(0) / diagonal_G
        else:
            blocks_GKK = self.inverse_II[:length, :length].unflatten(1, by_group).unflatten(0, by_group)
            blocks_GKK = blocks_GKK.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            identity_KK = torch.eye(self.size, dtype=blocks_GKK.dtype, device=blocks_GKK.device)
            blocks_GKK = torch.where(self.removed_G[:, None, None], identity_KK, blocks_GKK)
            weight_GKO = self.weight_IO[:length].unflatten(0, by_group)
            halves_GKO = torch.linalg.solve_triangular(self._factor(blocks_GKK), weight_GKO, upper=False)
            errors_G = halves_GKO.square().sum((1, 2))
        return errors_G.masked_fill(self.removed_G, torch.inf)

    def marginal_errors(self, chosen: torch.Tensor, *, remove: bool = False) -> torch.Tensor:
        """Cost of each of several groups once those before it are removed and the rest is refitted.

        One factor of their joint block yields all costs: row k of ``L⁻¹ W_Kᵀ`` is the remainder of column k after the
        columns before it, divided by the root of the column's own entry of the inverse at that point.

        Args:
            chosen: groups in the order of their removal.
            remove: whether to remove them as well.
        """
        columns = self._columns(chosen)
        taken_KD = self.taken_DI[:, columns].T
        block_KK = self.inverse_II[columns[:, None], columns] - taken_KD @ taken_KD.T
        factor_KK = self._factor(block_KK)
        weight_KO = self.weight_IO[columns] - taken_KD @ self.given_DO
        halves_KO = torch.linalg.solve_triangular(factor_KK, weight_KO, upper=False)
        if remove:
            rows_KI = self.inverse_II[columns] - taken_KD @ self.taken_DI
            self._take(torch.linalg.solve_triangular(factor_KK, rows_KI, upper=False), halves_KO)
            self.removed_G[chosen] = True
        return halves_KO.square().sum(1).unflatten(0, (len(chosen), self.size)).sum(1)

    def _take(self, taken_KI: torch.Tensor, given_KO: torch.Tensor) -> None:
        """Subtract ``taken_KIᵀ taken_KI`` from ``P``, and ``taken_KIᵀ given_KO`` from ``Wᵀ``."""
        settles = subtracts(len(self.taken_DI), len(taken_KI), self.size, in_64_bits=taken_KI.dtype == torch.float64)
        if not settles:
            before_KI = given_KO @ self.weight_IO.T - (given_KO @ self.given_DO.T) @ self.taken_DI
            change_KI = (given_KO @ given_KO.T) @ taken_KI - 2 * before_KI
            self.squares_I += change_KI.mul_(taken_KI).sum(0)
            self.diagonal_I -= taken_KI.square().sum(0)
        self.taken_DI = torch.cat([self.taken_DI, taken_KI])
        self.given_DO = torch.cat([self.given_DO, given_KO])
        if settles:
            self._settle()

    def _columns(self, groups: torch.Tensor) -> torch.Tensor:
        return (groups[:, None] * self.size + torch.arange(self.size, device=groups.device)).flatten()

    def _let_go(self, left: int) -> None:
        """Keep only the ``left`` remaining groups and the columns of no group."""
        self._settle()
        kept = self.removed_G.byte().argsort(stable=True)[:left]
        others = torch.arange(self.groups * self.size, len(self.inverse_II), device=kept.device)
        columns = torch.cat([self._columns(kept), others])
        self.weight_IO = self.weight_IO[columns]
        self.inverse_II = self.inverse_II[columns][:, columns]
        self.numbers_G, self.removed_G, self.groups = self.numbers_G[kept], self.removed_G[kept], left
        self._begin()

    def choose(self, count: int, left: int) -> torch.Tensor:
        """Choose the groups to remove next, cheapest first.

        If two groups can replace each other, each is cheap, but both together are not. So if a round removes several
        groups, it considers twice as many and takes those that stay cheap after the ones before them.
        """
        looked_at = self.errors().argsort(stable=True)[: count if count == 1 else min(2 * count, left)]
        if len(looked_at) == count:
            return looked_at
        return looked_at[self.marginal_errors(looked_at).argsort(stable=True)[:count]]

    def run(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Remove everything; return the groups in order of removal and their errors, or None if rounding broke it."""
        total, order, errors = self.groups, [], []
        at_once = -(-total // MOST_ROUNDS)
        for left in range(total, 0, -at_once):
            chosen = self.choose(min(at_once, left), left)
            order.append(self.numbers_G[chosen])
            errors.append(self.marginal_errors(chosen, remove=True))
            if lets_go(total, self.groups, left - len(chosen)):
                self._let_go(left - len(chosen))
        errors_G = torch.cat(errors)
        return None if self.broken or not torch.isfinite(errors_G).all() else (torch.cat(order), errors_G)


def subtracts(put_by: int, taken: int, size: int, *, in_64_bits: bool) -> bool:
    """Whether an elimination subtracts all collected columns, including those that it takes now.

    Args:
        put_by: columns collected so far.
        taken: columns taken now.
        size: columns per group.
        in_64_bits: whether it computes in 64 bits.
    """
    return size > 1 or not in_64_bits or put_by + 2 * taken > _MOST_PUT_BY


def lets_go(total: int, groups: int, left: int) -> bool:
    """Whether an elimination that began with ``total`` groups and holds ``groups`` drops all but those left."""
    return left > 0 and (groups - left) * LETS_GO >= total


def _as_scores(order_G: torch.Tensor, errors_G: torch.Tensor) -> torch.Tensor:
    """Scores by group that rise strictly in the order of removal and stay close to the errors.

    The cumulative maximum alone leaves ties, which a ranking breaks by position. A small relative increment per place
    breaks them in the order of the elimination; over 10,000 groups it adds a quarter of a percent.
    """
    rising = errors_G.double() if errors_G.device.type != "mps" else errors_G
    rising = rising.cummax(0).values
    rising = rising.clamp_min(max(float(rising[-1]) * _FLOOR, torch.finfo(torch.float32).tiny))
    rising = rising * (1 + TIE_BREAK * torch.arange(len(rising), device=rising.device))
    scores_G = torch.empty(len(order_G), dtype=torch.float32, device=order_G.device)
    scores_G[order_G] = rising.to(torch.float32)
    return scores_G


@torch.no_grad()
def osscar_group_scores(
    weight_OI: torch.Tensor, moment_II: torch.Tensor, positions_GK: torch.Tensor, damping: float
) -> torch.Tensor:
    """Error that the removal of each group adds to the refitted consumer, when groups are removed greedily.

    Backward elimination: with ``P = (H + δ·mean diagonal·I)⁻¹``, removing group g and refitting all other columns
    adds ``tr(W_g (P_gg)⁻¹ W_gᵀ)``. The cheapest group is removed, ``W`` and ``P`` are updated, and so on until none is
    left. Up to :data:`MOST_ROUNDS` groups are removed one by one. If there are more, each of that many rounds removes
    equally many groups, with their exact joint error.

    Keeping the k groups with the highest scores is the greedy choice for every k. The scores of the others add up
    to about the error of the refit, or to more if a removal cost less than one before it, since scores never fall.

    Args:
        weight_OI: effective weight of the consumer.
        moment_II: second moment ``H`` of its inputs.
        positions_GK: columns that belong to each group, int64. Columns of no group stay and are refitted.
        damping: ``δ``; if it is too weak, it is raised step by step as in
            :func:`loraprune.calibration.least_squares.damped_cholesky`.

    Returns:
        One score per group, float32, shape ``(groups,)``.

    Raises:
        NotPositiveDefiniteError: the moment cannot be factored even with raised damping.

    Source: the layer-wise objective of OSSCAR (arXiv 2403.12983), without its local search; greedy by blocks as in
    ZipLM (arXiv 2302.04089).
    """
    groups, size = positions_GK.shape
    columns = positions_GK.flatten()
    free = torch.ones(weight_OI.shape[1], dtype=torch.bool, device=columns.device)
    free[columns] = False
    columns = torch.cat([columns, free.nonzero()[:, 0]])
    in_64_bits = weight_OI.shape[1] <= WIDEST_IN_64_BITS and weight_OI.device.type != "mps"
    dtype = torch.float64 if in_64_bits else torch.float32
    moment_II = moment_II[columns][:, columns].to(dtype)
    for _ in range(DAMPING_ATTEMPTS):
        factor_II, used = damped_cholesky(moment_II, damping)
        inverse_II = torch.cholesky_inverse(factor_II)
        del factor_II
        # The most that rounding can subtract from the diagonal while everything is removed.
        inverse_II.diagonal().mul_(1 + 8 * torch.finfo(dtype).eps)
        found = _Elimination(weight_OI[:, columns].to(dtype), inverse_II, groups, size).run()
        if found is not None:
            return _as_scores(*found)
        damping = 10 * max(used, LEAST_RAISED_DAMPING)
    raise NotPositiveDefiniteError("The second moment of the inputs is too close to singular for an elimination.")
