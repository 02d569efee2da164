"""Pictures of the experiments' results: lines and bars with the spread over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from laboratory import Row, perplexities, spread
from matplotlib.figure import Figure

COLORS = ("#2563c9", "#c2571a", "#2e8b57", "#8d4bbb", "#b3364b", "#6b7280", "#0e7490")


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the same rows give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def lines(
    rows: Sequence[Row],
    path: Path,
    *,
    models: Sequence[str],
    series: Mapping[str, Sequence[str]],
    xlabel: str,
    log_x: bool = False,
) -> None:
    """Perplexity in the domain against what was varied: a panel a model, a line a series.

    Args:
        rows: of the experiment.
        path: to write to.
        models: names, one panel each.
        series: by name, the rows' names that belong to it.
        xlabel: what was varied.
        log_x: whether it is drawn on a logarithmic axis.
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
        axes.set_title(model, loc="left")
        axes.set_xlabel(xlabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dde1e7")
        axes.set_axisbelow(True)
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
) -> None:
    """Perplexity in the domain as bars: a panel a model, a cluster a group of rows, a bar a name.

    Args:
        rows: of the experiment.
        path: to write to.
        models: names, one panel each.
        names: of rows, in the order of the bars.
        groups: by name of the cluster, the values that its rows have.
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
            axes.bar(places, means, width, yerr=deviations, capsize=2, color=COLORS[index % len(COLORS)], label=name)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_title(model, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dde1e7")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("perplexity, in-domain")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2 * len(models), len(labels)), frameon=False)
    save(figure, path)
