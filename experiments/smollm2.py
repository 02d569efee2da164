"""Quality against size on SmolLM2-135M: draws ``smollm2.svg`` from the rows of ``docs/results/smollm2.json``.

    python experiments/smollm2.py

The runs take hours on a CPU, so the script runs none of them. Each row of the file keeps its commands. Rows of one
``method`` and number of ``steps`` make a line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pictures
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
OURS = "loraprune"
COLORS = {OURS: "#2563c9", "LLM-Pruner": "#2e8b57", "FLAP": "#c2571a", "Wanda": "#8d4bbb"}
OTHER = "#6b7280"
ROOM = 1.3
"""Least factor between two labels of one panel, on the axis of perplexity."""

Row = Mapping[str, Any]


def draw(results: Mapping[str, Any]) -> Figure:
    """Two panels, without and with tuning: perplexity against the parameters left, a line a method."""
    rows, dense = results["rows"], results["dense"]
    figure = Figure(figsize=(8.6, 4.3), layout="constrained")
    figure.suptitle(results["title"], x=0.01, ha="left", fontsize=13, weight="bold")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, steps in zip(panels, (0, results["steps"]), strict=True):
        own = [row for row in rows if row["steps"] == steps]
        draw_panel(axes, own, dense)
        pictures.plain_(axes, f"after {steps} steps of LoRA" if steps else "after pruning")
        axes.set_xlabel("parameters left, millions")
    panels[0].set_ylabel(f"perplexity on {results['text']}, lower is better")
    panels[0].set_yscale("log")
    pictures.plain_ticks_(panels[0].yaxis)
    return figure


def draw_panel(axes: Axes, rows: Sequence[Row], dense: Row) -> None:
    """Draw a line a method, from the dense model on the left to the smallest one, where its name and figure stand."""
    size = dense["parameters"] / 1e6
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: -row["parameters"]):
        start = [(size, dense["perplexity"])]
        lines.setdefault(row["method"], start).append((row["parameters"] / 1e6, row["perplexity"]))
    for method, points in lines.items():
        width, order = (3, 3) if method == OURS else (1.5, 2)
        places, values = zip(*points, strict=True)
        axes.plot(places, values, color=COLORS.get(method, OTHER), marker="o", linewidth=width, zorder=order)
    ends = sorted((points[-1][1], points[-1][0], method) for method, points in lines.items())
    for height, (value, place, method) in zip(apart([end[0] for end in ends]), ends, strict=True):
        how = {"color": COLORS.get(method, OTHER), "weight": "bold" if method == OURS else "normal"}
        axes.text(place - 2, height, f"{method} {shown(value)}", va="center", **how)
    axes.plot(size, dense["perplexity"], marker="o", color=pictures.INK, zorder=4)
    axes.text(size + 1, dense["perplexity"] * 0.87, f"dense {shown(dense['perplexity'])}", va="top")
    smallest = min((end[1] for end in ends), default=size)
    axes.set_xlim(size + 4, smallest - 30)  # smaller to the right, and room for the names
    highest = max((row["perplexity"] for row in rows), default=0)
    axes.set_ylim(dense["perplexity"] * 0.65, max(axes.get_ylim()[1], highest * 1.4))  # the axis is shared


def shown(value: float) -> str:
    """A perplexity: 75.2, 1,175."""
    return f"{value:,.0f}" if value >= 200 else f"{value:.1f}"


def apart(values: Sequence[float]) -> list[float]:
    """Heights of labels at ascending values: moved up where they would lie on each other."""
    heights: list[float] = []
    for value in values:
        heights.append(max(value, heights[-1] * ROOM) if heights else value)
    return heights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of smollm2.json, where the picture goes")
    options = parser.parse_args()
    results = json.loads((options.out / "smollm2.json").read_text(encoding="utf-8"))
    pictures.save(draw(results), options.out / "smollm2.svg")


if __name__ == "__main__":
    main()
