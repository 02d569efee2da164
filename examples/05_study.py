"""Compare methods over ratios and seeds. A study that was stopped goes on where it was: start it again.

Every finished run is a line in ``OUTPUT/rows.jsonl``. At the end, ``table.md`` and ``picture.svg`` are drawn from it.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

import loraprune
from loraprune import OneshotConfig, RunOptions
from loraprune.data.demo import demo_data, demo_model

METHODS = {
    "loraprune": {"criterion": "osscar", "repair": "stream"},
    "FLAP": {"criterion": "flap", "repair": "bias"},
    "Wanda": {"criterion": "wanda", "repair": "none"},
    "random": {"criterion": "random", "repair": "none"},
}


def measure(options, data, held_out, method, ratio, seed):
    """One run: prune, tune if asked to, and measure."""
    config = OneshotConfig(
        ratio=ratio,
        seed=seed,
        allocation="uniform",  # equal widths for all methods
        calibration_sequences=options.calibration_sequences,
        max_length=options.max_length,
        **METHODS[method],
    )
    measured = RunOptions(eval_data=held_out, eval_sequences=16, latency=False, allow_bad_result=True)
    result = loraprune.oneshot(options.model, data, config, options=measured)
    dense = result.metrics["dense"]["perplexity"]
    if options.steps:
        training = {"max_steps": options.steps, "max_length": options.max_length, "seed": seed}
        result = loraprune.recover(result.model, data, tokenizer=result.tokenizer, training=training, options=measured)
    pruned = result.metrics["pruned"]
    return {"dense": dense, "perplexity": pruned["perplexity"], "parameters": pruned["parameters"]}


def all_rows(options, data, held_out):
    """Rows of all runs: known ones from the file, the others made now."""
    path = options.output / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    known = {json.dumps(row["run"]): row for row in map(json.loads, lines)}
    rows = []
    for method, ratio, seed in itertools.product(options.methods, options.ratios, options.seeds):
        run = {"method": method, "settings": METHODS[method], "ratio": ratio, "seed": seed}
        run |= {"model": str(options.model), "data": data, "held_out": held_out}
        run |= {name: getattr(options, name) for name in ("calibration_sequences", "max_length", "steps")}
        key = json.dumps(run)
        if key not in known:
            known[key] = {"run": run, **measure(options, data, held_out, method, ratio, seed)}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[key]) + "\n")
            print(f"{method}, ratio {ratio:g}, seed {seed}: perplexity {known[key]['perplexity']:.2f}", flush=True)
        rows.append(known[key])
    return rows


def spread(rows, method, ratio):
    """Mean and sample standard deviation over the seeds."""
    found = [row["perplexity"] for row in rows if (row["run"]["method"], row["run"]["ratio"]) == (method, ratio)]
    return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def table(options, rows):
    """A row a method, a column a ratio."""
    heads = ["method", *(f"{ratio:.0%} removed" for ratio in options.ratios)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method in options.methods:
        cells = [
            f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in (spread(rows, method, r) for r in options.ratios)
        ]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return (
        "\n".join([*lines, "", f"Dense: {rows[0]['dense']:.2f}. Means and standard deviations over the seeds."]) + "\n"
    )


def picture(options, rows):
    """Perplexity against the ratio, a line a method."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in options.methods:
        means, deviations = zip(*(spread(rows, method, ratio) for ratio in options.ratios), strict=True)
        axes.errorbar(options.ratios, means, yerr=deviations, marker="o", capsize=3, label=method)
    axes.axhline(rows[0]["dense"], color="gray", linestyle="--", label="dense")
    axes.set_yscale("log")
    axes.set_xlabel("ratio of the prunable parameters removed")
    axes.set_ylabel("perplexity on held-out text")
    axes.legend(frameon=False)
    return figure


def main():
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=demo_model(), help="folder or name on the Hub (default: the bundled model)")
    parser.add_argument("--data", help="calibration text (default: Python's standard library)")
    parser.add_argument("--held-out", help="text to measure on (default: modules that the bundled model never saw)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=0, help="steps of LoRA after each cut (default: none)")
    parser.add_argument("--calibration-sequences", type=int, default=40)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path, default=Path("study"), help="folder of rows, table and picture")
    options = parser.parse_args()
    if (options.data is None) != (options.held_out is None):
        parser.error("pass --data and --held-out together: all runs have to be measured on the same rows")
    data, held_out = (options.data, options.held_out) if options.data else demo_data(options.output / "demo-data")

    rows = all_rows(options, str(data), str(held_out))
    (options.output / "table.md").write_text(table(options, rows), encoding="utf-8")
    picture(options, rows).savefig(options.output / "picture.svg")
    print(table(options, rows))
    print(f"The rows, the table and the picture are in {options.output}.")


if __name__ == "__main__":
    main()
