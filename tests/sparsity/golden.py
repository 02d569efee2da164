"""What the sparse methods compute, one weight after the other in NumPy with 64 bits. A mask is True where one goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loraprune.sparsity.pattern import SparsityPattern

Choose = Callable[[np.ndarray, int, list[float]], np.ndarray]
"""Present values of some columns, the first of these columns, ``[(H_{≥j})⁻¹]_jj`` of each: what of them goes."""


def first_lowest(scores, count):
    """Mark ``count`` entries of a list, the lowest first; of equal ones the first."""
    places = sorted(range(len(scores)), key=lambda place: (scores[place], place))
    return [place in places[:count] for place in range(len(scores))]


def count_of(weights, ratio):
    """How many of so many weights go: the product rounded down, but not because of how 0.29 is written in binary."""
    return int(round(weights * ratio, 6))


def whole_mask(scores, ratio):
    """All entries are compared with each other, row after row."""
    flat = [score for row in scores for score in row]
    return np.array(first_lowest(flat, count_of(len(flat), ratio))).reshape(scores.shape)


def row_mask(scores, ratio):
    """The entries of a row are compared with each other."""
    return np.array([first_lowest(list(row), count_of(len(row), ratio)) for row in scores])


def part_mask(scores, n, m):
    """Every ``m`` consecutive entries of a row are compared with each other."""
    return np.hstack(
        [[first_lowest(list(row), n) for row in scores[:, at : at + m]] for at in range(0, scores.shape[1], m)]
    )


def magnitude_mask(weight, pattern: SparsityPattern):
    scores = np.abs(weight)
    return whole_mask(scores, pattern.ratio) if pattern.m is None else part_mask(scores, pattern.n, pattern.m)


def wanda_scores(weight, norms):
    return np.array([[abs(value) * norm for value, norm in zip(row, norms, strict=True)] for row in weight])


def wanda_mask(weight, norms, pattern: SparsityPattern):
    scores = wanda_scores(weight, norms)
    return row_mask(scores, pattern.ratio) if pattern.m is None else part_mask(scores, pattern.n, pattern.m)


def norms_of(rows):
    """Of each feature over all rows."""
    return np.array([np.sqrt(sum(value * value for value in column)) for column in np.float64(rows).T])


def moment_of(rows):
    """Mean of the outer products of the rows."""
    rows = np.float64(rows)
    return sum(np.outer(row, row) for row in rows) / len(rows)


def damped(moment, damping):
    """A dead input gets the mean of the others on the diagonal, and then every input the ridge."""
    moment = np.array(moment, dtype=np.float64)
    alive = [value for value in np.diag(moment) if value != 0]
    for column in range(len(moment)):
        if moment[column, column] == 0:
            moment[column, column] = np.mean(alive)
    return moment + damping * np.mean(np.diag(moment)) * np.eye(len(moment))


def surgeon(weight, moment, damping, choose: Choose, step):
    """Optimal brain surgeon from the left to the right, straight from its equations.

    A weight ``w_j`` that goes costs ``w_j² / (2 [H_F⁻¹]_jj)`` and moves the free ones, which are those from column j
    on, by ``−w_j / [H_F⁻¹]_jj · [H_F⁻¹]_{:,j}``; H_F is the part of the second moment that belongs to them. Every
    inverse is computed anew.

    Returns:
        The weight after all updates, and the mask.
    """
    weight = np.array(weight, dtype=np.float64)
    weight[:, np.diag(moment) == 0] = 0
    full = damped(moment, damping)
    width = len(full)
    removed = np.zeros(weight.shape, dtype=bool)
    for column in range(width):
        if column % step == 0:
            part = range(column, min(column + step, width))
            diagonals = [np.linalg.inv(full[at:, at:])[0, 0] for at in part]
            removed[:, column : part.stop] = choose(weight[:, column : part.stop], column, diagonals)
        free = np.linalg.inv(full[column:, column:])
        for row in range(len(weight)):
            if removed[row, column]:
                weight[row, column:] -= weight[row, column] / free[0, 0] * free[:, 0]
                weight[row, column] = 0
    return weight, removed


def cost(change, moment):
    """Mean squared change of a row's output."""
    return float(change @ np.float64(moment) @ change)


def with_better_rows(weight, updated, removed, moment):
    """Rows that are better off without their updates, as they were, with zeros."""
    weight, updated = np.float64(weight), updated.copy()
    dead = np.diag(moment) == 0
    for row in range(len(weight)):
        plain = np.where(removed[row] | dead, 0.0, weight[row])
        if cost(updated[row] - weight[row], moment) > cost(plain - weight[row], moment):
            updated[row] = plain
    return updated


def sparsegpt(pattern: SparsityPattern) -> Choose:
    """``w_j² / [H_F⁻¹]_jj``: of a block of columns, or of M consecutive ones."""

    def choose(weight, first, diagonals):
        scores = np.array([[value * value / at for value, at in zip(row, diagonals, strict=True)] for row in weight])
        return whole_mask(scores, pattern.ratio) if pattern.m is None else part_mask(scores, pattern.n, pattern.m)

    return choose
