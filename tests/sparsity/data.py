"""Matrices and inputs of layers, drawn at random."""

from __future__ import annotations

import torch

from loraprune.calibration.features import FeatureStatistics


def generator(seed):
    return torch.Generator().manual_seed(seed)


def weight_of(rows, width, *, seed=0):
    return torch.randn(rows, width, generator=generator(seed))


def inputs_of(tokens, width, *, seed=0, correlation=1.0, dead=()):
    """Rows whose features share a few directions, with scales that differ; features in ``dead`` are zero."""
    source = generator(1000 + seed)
    shared = torch.randn(tokens, 3, generator=source) @ torch.randn(3, width, generator=source)
    rows = correlation * shared + torch.randn(tokens, width, generator=source)
    rows *= torch.rand(width, generator=source) * 2 + 0.1
    rows[:, list(dead)] = 0
    return rows


def statistics_of(rows, *, moment=True):
    statistics = FeatureStatistics(moment=moment)
    statistics.add(rows)
    return statistics
