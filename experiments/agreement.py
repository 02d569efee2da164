"""Figure 4 of the LoRAPrune paper in miniature: how far the LoRA-guided criterion removes what exact gradients would.

    python experiments/agreement.py

The share of the groups removed by ``lora`` that ``taylor`` removes too (``fisher`` beside it), by kind of group and
sparsity ratio, after 20 steps of tuning; beside it what groups drawn at random would have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pictures
from laboratory import (
    BATCH_SIZE,
    LEARNING_RATE,
    SEGMENT,
    Laboratory,
    Row,
    Subject,
    in_words,
    markdown,
    parser,
    quiet,
    spread,
    subjects,
)
from matplotlib.figure import Figure

import loraprune
from loraprune import ComparisonConfig

STEPS = 20
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
PAIRS = (("taylor", "lora"), ("taylor", "fisher"))


def agreement(subject: Subject, seed: int) -> Row:
    """Agreement of all pairs as plain values."""
    config = ComparisonConfig(criteria=("taylor", "lora", "fisher"), ratios=RATIOS, steps=STEPS)
    training = {
        "per_device_train_batch_size": BATCH_SIZE,
        "max_length": SEGMENT,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
    }
    found = loraprune.compare_criteria(subject.model, subject.train, config, training=training)
    return {"agreement": found.to_json()["agreement"]}


def values(rows: Sequence[Row], model: str, pair: tuple[str, str], kind: str, ratio: float, what: str) -> list[float]:
    """A figure of a pair at a ratio, a value a seed."""
    return [
        item[what]
        for row in rows
        if row["model"] == model
        for item in row["agreement"]
        if {item["first"], item["second"]} == set(pair)
        and item["kind"] == kind
        and item["ratio"] == ratio
        and item[what] is not None
    ]


def seen(
    rows: Sequence[Row], model: str, pair: tuple[str, str], kind: str, what: str
) -> tuple[list[float], list[float], list[float]]:
    """Ratios at which groups of a kind go at all, with mean and deviation of a figure there."""
    found = {ratio: values(rows, model, pair, kind, ratio, what) for ratio in RATIOS}
    points = [(ratio, *spread(figures)) for ratio, figures in found.items() if figures]
    places, means, deviations = ([point[column] for point in points] for column in range(3))
    return places, means, deviations


def draw(rows: Sequence[Row], models: Sequence[str], path: Path) -> None:
    """A panel a model: a line a kind and pair, dotted what chance gives."""
    figure = Figure(figsize=(4.2 * len(models), 3.2), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        kinds = dict.fromkeys(item["kind"] for row in rows if row["model"] == model for item in row["agreement"])
        for color, kind in zip(pictures.COLORS, kinds, strict=False):
            for pair, style in zip(PAIRS, ("-", "--"), strict=True):
                places, means, deviations = seen(rows, model, pair, kind, "shared")
                how = {"fmt": style, "color": color, "marker": "o", "markersize": 3, "label": f"{pair[1]}, {kind}"}
                axes.errorbar(places, means, yerr=deviations, **how)
            places, means, _ = seen(rows, model, PAIRS[0], kind, "by_chance")
            axes.plot(places, means, ":", color=color, label=f"chance, {kind}")
        pictures.plain_(axes, model)
        axes.set_xlabel("sparsity ratio")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0), max(high, 1.02))  # error bars may reach beyond 1
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    figure.axes[0].set_ylabel("share in common with taylor")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    pictures.save(figure, path)


def main() -> None:
    options = parser(__doc__).parse_args()
    quiet()
    laboratory = Laboratory(options, "agreement")
    rows: list[Row] = []
    for seed in options.seeds:
        for subject in subjects(options):
            key = {"model": subject.name, "compared": "taylor, lora, fisher", "steps": STEPS, "seed": seed}
            row = laboratory.measure(key, lambda subject=subject, seed=seed: agreement(subject, seed))
            rows += [] if row is None else [row]
            laboratory.write(rows)
    table = []
    for model in options.models:
        kinds = dict.fromkeys(item["kind"] for row in rows if row["model"] == model for item in row["agreement"])
        for kind in kinds:
            for pair in PAIRS:
                cells = [in_words(values(rows, model, pair, kind, ratio, "shared")) for ratio in RATIOS]
                table.append([model, kind, f"{pair[1]} with {pair[0]}", *cells])
            chance = [in_words(values(rows, model, PAIRS[0], kind, ratio, "by_chance")) for ratio in RATIOS]
            table.append([model, kind, "by chance", *chance])
    print(markdown(["", "", "", *(f"{ratio:.0%}" for ratio in RATIOS)], table))
    draw(rows, options.models, laboratory.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
