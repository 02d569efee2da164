"""Pictures of the experiments' results: lines and bars with the spread over the seeds."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from laboratory import Row, perplexities, spread
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

COLORS = ("#2563c9", "#c2571a", "#2e8b57", "#8d4bbb", "#b3364b", "#6b7280", "#0e7490")
INK, GRID, PAPER = "#1f2328", "#dde1e7", "#ffffff"
DARK = {
    "#2563c9": "#6ea8fe",
    "#c2571a": "#f0883e",
    "#2e8b57": "#56d38a",
    "#8d4bbb": "#c297ea",
    "#b3364b": "#ff8095",
    "#6b7280": "#9aa4b2",
    "#0e7490": "#4cc9e0",
    INK: "#e6edf3",
    GRID: "#30363d",
    PAPER: "#0d1117",
}
"""What each color becomes on a dark page."""


def save(figure: Figure, path: Path) -> None:
    """Write a picture, and beside it ``NAME-dark.svg``; the same rows give the same bytes."""
    inked_(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", facecolor=PAPER, metadata={"Date": None})
    light = text.getvalue()
    path.write_text(light, encoding="utf-8")
    dark = re.sub("|".join(DARK), lambda found: DARK[found[0]], light)
    path.with_name(f"{path.stem}-dark{path.suffix}").write_text(dark, encoding="utf-8")


def inked_(figure: Figure) -> None:
    """Give text, frames and ticks a color that can be told from the others: matplotlib does not write black down."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(which="both", color=INK, labelcolor=INK)
        axes.spines[:].set_color(INK)
    for text in figure.findobj(Text):
        if matplotlib.colors.to_hex(text.get_color()) == "#000000":
            text.set_color(INK)


def plain_(axes: Axes, title: str) -> None:
    """The looks that all panels share."""
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)


def plain_ticks_(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2, 5, 10."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:.0e}"))
    axis.set_minor_locator(NullLocator())


def lines(
    rows: Sequence[Row],
    path: Path,
    *,
    models: Sequence[str],
    series: Mapping[str, Sequence[str]],
    xlabel: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Perplexity in the domain against what was varied: a panel a model, a line a series.

    Args:
        rows: of the experiment.
        path: to write to.
        models: names, one panel each.
        series: by name, the rows' names that belong to it.
        xlabel: what was varied.
        log_x: whether it is drawn on a logarithmic axis; ``log_y``: whether perplexity is.
    """
    figure = Figure(figsize=(4.2 * len(models), 3.2), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for color, (name, members) in zip(COLORS, series.items(), strict=False):
            own = [row for row in rows if row["model"] == model and row["name"] in members]
            places = sorted({row["x"] for row in own})
            if not places:
                continue
            points = [spread(perplexities(own, "in-domain", x=x)) for x in places]
            means, deviations = zip(*points, strict=True)
            axes.errorbar(places, means, yerr=deviations, marker="o", markersize=4, capsize=3, color=color, label=name)
        if log_x:
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places], minor=False)
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
            plain_ticks_(axes.yaxis)
        plain_(axes, model)
        axes.set_xlabel(xlabel)
    figure.axes[0].set_ylabel("perplexity, in-domain")
    if len(series) > 1:
        figure.axes[-1].legend(frameon=False)
    save(figure, path)


def bars(
    rows: Sequence[Row],
    path: Path,
    *,
    models: Sequence[str],
    names: Sequence[str],
    groups: Mapping[str, dict[str, object]],
    colors: Sequence[str] = COLORS,
    dense: str | None = None,
    xlabel: str = "",
) -> None:
    """Perplexity in the domain as bars: a panel a model, a cluster a group of rows, a bar a name.

    Args:
        rows: of the experiment.
        path: to write to.
        models: names, one panel each.
        names: of rows, in the order of the bars.
        groups: by name of the cluster, the values that its rows have.
        colors: of the bars.
        dense: name of the row that becomes a line across the panel.
        xlabel: what the clusters are.
    """
    figure = Figure(figsize=(4.6 * len(models), 3.6), layout="constrained")
    width = 0.8 / len(names)
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for index, name in enumerate(names):
            found = [perplexities(rows, "in-domain", model=model, name=name, **same) for same in groups.values()]
            there = [cluster for cluster, values in enumerate(found) if values]
            if not there:
                continue
            means, deviations = zip(*(spread(found[cluster]) for cluster in there), strict=True)
            places = [cluster - 0.4 + width * (index + 0.5) for cluster in there]
            how = {"ecolor": INK, "capsize": 2, "color": colors[index % len(colors)], "label": name}
            axes.bar(places, means, width, yerr=deviations, **how)
            for place, mean, deviation in zip(places, means, deviations, strict=True):
                axes.annotate(
                    f"{mean:.3g}",
                    (place, mean + deviation),
                    xytext=(0, 4),
                    textcoords="offset points",
                    rotation=90,
                    fontsize=7,
                    ha="center",
                    va="bottom",
                )
        axes.margins(y=0.14)
        reference = perplexities(rows, "in-domain", model=model, name=dense) if dense else []
        if reference:
            axes.axhline(spread(reference)[0], color=INK, linestyle="--", linewidth=1, label=dense)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_xlabel(xlabel)
        plain_(axes, model)
    figure.axes[0].set_ylabel("perplexity, in-domain")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2 * len(models), len(labels)), frameon=False)
    save(figure, path)
