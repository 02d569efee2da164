"""Tables 2 and 5 of the LoRAPrune paper in miniature: methods, at 20, 30 and 50 %, on three models and three texts.

    python experiments/methods.py

Methods that prune before they tune get the same tuning afterwards. ``dense`` is the model as it is, ``dense, tuned``
the same with LoRA and nothing removed.
"""

from __future__ import annotations

import pictures
from laboratory import PAPER, Run, all_runs, in_words, markdown, parser, perplexities

RATIOS = (0.2, 0.3, 0.5)
PLAIN = {"allocation": "uniform", "repair": "none"}
METHODS = (
    Run(name="magnitude", how="separate", values={"criterion": "magnitude", **PLAIN}),
    Run(name="Wanda", how="separate", values={"criterion": "wanda", **PLAIN}),
    Run(
        name="LLM-Pruner",
        how="separate",
        values={
            "criterion": "taylor",
            "taylor_form": "first",
            **PLAIN,
            "calibration_sequences": 10,
            "max_length": 64,
        },
    ),
    Run(name="LoRAPrune (paper, 8 bits)", values=PAPER, quantization="bnb-8bit"),
    Run(name="LoRAPrune (paper)", values=PAPER),
    Run(name="loraprune (default)", values={}),
    Run(name="loraprune (global)", values={"allocation": "global"}),
)
DENSE = (
    Run(name="dense", how="dense", values={}),
    Run(name="dense, tuned", values={"ratio": 0.0, "repair": "none"}),
)

COLORS = ("#6b7280", "#c2571a", "#2e8b57", "#8d4bbb", "#b3364b", "#2563c9", "#0e7490")
"""One a method; ours are blue."""


def at(method: Run, ratio: float) -> Run:
    """A method at a sparsity ratio."""
    return Run(
        name=method.name,
        x=ratio,
        how=method.how,
        values={**method.values, "ratio": ratio},
        quantization=method.quantization,
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    runs = [*DENSE, *(at(method, ratio) for ratio in RATIOS for method in METHODS)]
    laboratory, rows = all_runs(options, "methods", runs)
    texts = list(rows[0]["perplexity"])
    names = [run.name for run in METHODS]
    for model in options.models:
        print(f"\n### {model}\n")
        table = [
            [run.name, "0 %", *(in_words(perplexities(rows, text, model=model, name=run.name)) for text in texts)]
            for run in DENSE
        ]
        for ratio in RATIOS:
            for name in names:
                same = {"model": model, "name": name, "x": ratio}
                table.append([name, f"{ratio:.0%}", *(in_words(perplexities(rows, text, **same)) for text in texts)])
        print(markdown(["method", "removed", *texts], table))
    clusters: dict[str, dict[str, object]] = {f"{ratio:.0%}".replace("%", " %"): {"x": ratio} for ratio in RATIOS}
    pictures.bars(
        rows,
        laboratory.output.with_suffix(".svg"),
        models=options.models,
        names=names,
        groups=clusters,
        colors=COLORS,
        dense=DENSE[0].name,
        xlabel="prunable parameters removed",
    )


if __name__ == "__main__":
    main()
