"""Statistics of the input features of a layer, collected batch by batch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from loraprune.processes.ranks import num_processes, summed

ALL_ROWS = slice(0, sys.maxsize)
NARROWEST_BLOCK = 96
"""Smallest number of columns that are multiplied together in :func:`gram`."""


def part_of(rows: slice, seen: int) -> slice:
    """Return the rows of a batch that are among ``rows``, after ``seen`` rows in earlier batches."""
    return slice(max(rows.start - seen, 0), max(rows.stop - seen, 0))


def block_width(features: int) -> int:
    """Number of columns that are multiplied together in :func:`gram`."""
    return max(-(-features // 8), NARROWEST_BLOCK)


def gram(x: torch.Tensor) -> torch.Tensor:
    """Return ``xᵀ x`` for rows ``x``, shape ``(rows, features)``; the lower triangle is a copy of the upper one.

    Each of up to eight blocks of columns is multiplied by itself and the columns after it: 0.56 of the operations.
    """
    features, size = x.shape[1], block_width(x.shape[1])
    found = x.new_empty(features, features)
    for start in range(0, features, size):
        products = x[:, start : start + size].T @ x[:, start:]
        own = products[:, :size]
        own.copy_(own.triu() + own.triu(1).T)
        found[start : start + size, start:] = products
        found[start:, start : start + size] = products.T
    return found


class FeatureStatistics:
    """Sums over the input rows of a layer, regardless of sequences; single rows are not kept.

    Args:
        moment: whether to collect the products of all pairs of features as well.

    Attributes:
        rows: number of rows so far.
        with_moment: whether the products of all pairs are collected.
    """

    def __init__(self, *, moment: bool) -> None:
        self.rows = 0
        self.with_moment = moment
        self._sum: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._products: torch.Tensor | None = None
        self._divided = False

    @torch.no_grad()
    def add(self, inputs: torch.Tensor) -> None:
        """Add rows, shape ``(..., features)``."""
        x = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        before = self._sum_of_products()
        self.rows += x.shape[0]
        if not len(x):
            total, squares = x.new_zeros(2, x.shape[1], dtype=torch.float64)
        else:
            # The deviations in 32 bits, their sums in 64: on a CPU, summing all rows in 64 bits takes as long as the
            # products do, and squares of a large mean in 32 bits would hide a small variance.
            mean = x.mean(0)
            deviation = (x - mean).square_().sum(0).double()
            total, mean = mean.double() * len(x), mean.double()
            squares = deviation + total * mean
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
        if self.with_moment:
            products = gram(x)
            self._products, self._divided = products if before is None else before.add_(products), False

    def plus(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of the rows of both."""
        found = FeatureStatistics(moment=self.with_moment and other.with_moment)
        found.rows = self.rows + other.rows
        found._sum = _total(self._sum, other._sum)
        found._squares = _total(self._squares, other._squares)
        if found.with_moment:
            found._products = _total(self._sum_of_products(), other._sum_of_products())
        return found

    def _sum_of_products(self) -> torch.Tensor | None:
        """Return ``Σ x xᵀ``: a new tensor once :attr:`moment` has been read."""
        return self._products * self.rows if self._divided and self._products is not None else self._products

    def over_processes_(self) -> FeatureStatistics:
        """Sum over the rows of all processes of a run, in place."""
        if num_processes() > 1:
            assert self._sum is not None
            assert self._squares is not None
            if self._products is not None:
                self._products, self._divided = summed(self._known(self._sum_of_products())), False
            rows = self._sum.new_tensor([float(self.rows)])
            total = summed(torch.cat([self._sum, self._squares, rows]))
            self._sum, self._squares = total[: len(self._sum)], total[len(self._sum) : -1]
            self.rows = round(float(total[-1]))
        return self

    def _known(self, value: torch.Tensor | None) -> torch.Tensor:
        if value is None:
            raise RuntimeError("No calibration data has entered the layer, or its second moment was not requested.")
        return value

    @property
    def norms(self) -> torch.Tensor:
        """``‖X_j‖₂`` over all rows, float32, shape ``(features,)``."""
        return self._known(self._squares).sqrt().float()

    @property
    def mean(self) -> torch.Tensor:
        """``E[x_j]``, float32, shape ``(features,)``."""
        return (self._known(self._sum) / self.rows).float()

    @property
    def mean_square(self) -> torch.Tensor:
        """``E[x_j²]``, float32, shape ``(features,)``."""
        return (self._known(self._squares) / self.rows).float()

    @property
    def variance(self) -> torch.Tensor:
        """``E[x_j²] − E[x_j]²``, float32, shape ``(features,)``."""
        mean = self._known(self._sum) / self.rows
        return (self._known(self._squares) / self.rows - mean.square()).clamp_min_(0.0).float()

    @property
    def moment(self) -> torch.Tensor:
        """``E[x xᵀ]``, float32, shape ``(features, features)``; the same tensor each time: do not modify it."""
        products = self._known(self._products)
        if not self._divided:  # in place: a second moment may take gigabytes
            self._products, self._divided = products.div_(self.rows), True
        return products

    @property
    def is_finite(self) -> bool:
        """Whether all inputs were finite."""
        return self._squares is None or bool(torch.isfinite(self._squares).all())


def _total(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        only = other if one is None else one
        return None if only is None else only.clone()
    return one + other


class _SharingChanged(Exception):  # noqa: N818 (not an error)
    """Layers that were called with one tensor in the first run have different inputs in a later one."""


class _Watch:
    """Collects statistics of the inputs of several layers; layers that are called with one tensor share an object."""

    def __init__(self, *, moment: bool, share: bool) -> None:
        self.statistics: dict[str, FeatureStatistics] = {}
        self._moment = moment
        self._share = share
        self._leaders: dict[str, str] = {}
        # The tensors themselves are kept during a run, because a freed address is used again.
        self._seen: dict[tuple[Any, ...], tuple[str, torch.Tensor]] = {}
        self._calls: Counter[str] = Counter()

    def end_run(self) -> None:
        """Release the tensors of the run."""
        self._seen.clear()
        # A layer called without its leader has raised already. A leader called alone collected rows for both.
        if any(self._calls[name] != self._calls[leader] for name, leader in self._leaders.items()):
            raise _SharingChanged

    def take(self, name: str, inputs: torch.Tensor) -> None:
        """Record a call of a layer."""
        if not inputs.numel():  # an expert that no token is routed to
            return
        self._calls[name] += 1
        key = (inputs.data_ptr(), inputs.dtype, inputs.shape, inputs.stride(), inputs._version)
        leader = self._seen[key][0] if self._share and key in self._seen else name
        if self._leaders.setdefault(name, leader) != leader:
            raise _SharingChanged
        self._seen.setdefault(key, (name, inputs))
        if leader != name:
            self.statistics[name] = self.statistics[leader]
            return
        if name not in self.statistics:
            self.statistics[name] = FeatureStatistics(moment=self._moment)
        self.statistics[name].add(inputs)


def watched_features(
    model: nn.Module, names: Sequence[str], runs: Sequence[Callable[[], Any]], *, moment: bool
) -> dict[str, FeatureStatistics]:
    """Return statistics of the inputs of several layers over several runs.

    q, k and v read one tensor, so one second moment serves all three.

    Args:
        model: model that contains the layers.
        names: names of the layers.
        runs: calls that each run the model on a part of the data.
        moment: whether to collect second moments as well.

    Returns:
        Statistics by name of the layer; a layer that no data reached has no entry.
    """
    try:
        return _watched(model, names, runs, _Watch(moment=moment, share=True))
    except _SharingChanged:
        return _watched(model, names, runs, _Watch(moment=moment, share=False))


def _watched(
    model: nn.Module, names: Sequence[str], runs: Sequence[Callable[[], Any]], watch: _Watch
) -> dict[str, FeatureStatistics]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: watch.take(name, args[0])

    # Before any mask on a layer, so the statistics cover all inputs.
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), prepend=True) for name in names]
    try:
        for run in runs:
            run()
            watch.end_run()
    finally:
        for handle in handles:
            handle.remove()
    return watch.statistics
