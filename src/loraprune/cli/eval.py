"""``loraprune eval``: evaluation of models on texts, tasks, prompts and labelled data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.names import check_no_preset
from loraprune.cli.console import FAILED, begin, open_console, report_errors, results_console
from loraprune.cli.declared import SEVERAL
from loraprune.cli.options import MODEL_HELP
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line
from loraprune.measure.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.evaluation.results import Results

_DESCRIPTION = """Measure models: perplexity of texts, tasks, completions of prompts, accuracy on labelled data. Without
options, measure perplexity on WikiText-2.

If you pass several models, all are compared with the first. Results are kept in a file, and what it already holds is
not measured again."""
_EXAMPLES = """examples:
  loraprune eval MODEL pruned --ppl wikitext2 --tasks piqa
  loraprune eval pruned --ppl notes.txt --prompts "Once upon a time"
  loraprune eval classifier --data images/
"""
DEFAULT_OUTPUT = Path("evaluation.json")


def eval_parser() -> Parser:
    """Make the parser, without defaults: ``EvaluationConfig`` has them."""
    parser = Parser(
        "loraprune eval",
        usage="loraprune eval MODEL... [--ppl TEXT...] [--tasks TASK...] [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{MODEL_HELP}, or folder of an adapter")
    add = parser.add_argument_group("most used").add_argument
    add("--ppl", nargs="+", metavar="TEXT", help="texts for perplexity: wikitext2, ptb, c4, demo, a text file, or "
        "NAME=FILE for a local copy of a named text")  # fmt: skip
    add("--tasks", nargs="+", metavar="TASK", help="tasks of lm-eval, commonsense (the seven of the LoRAPrune paper), "
        "mmlu, or files of items")  # fmt: skip
    add("--prompts", nargs="*", metavar="TEXT", help="prompts to complete, or a file of them (default: built-in "
        "prompts)")  # fmt: skip
    add("--data", **SEVERAL, metavar="DATA", help="labelled images or texts for a classifier, or pairs for an "
        "encoder-decoder model, in the formats of loraprune prune")  # fmt: skip
    add("--limit", type=int, help="number of segments, items and rows to measure on (default: all)")
    add("--num-fewshot", type=int, help="examples before each item of a task (default: the task's own)")
    add("-o", "--output", type=Path, metavar="FILE.json", help="file for the results (default: evaluation.json)")
    add("--force", action="store_true", help="measure again what the file already holds")
    add("--dtype", metavar="{float32,bfloat16,float16}", help="data type to compute in (default: the checkpoint's; "
        "float32 on a CPU)")  # fmt: skip
    add("--device", help="device, such as cpu or cuda:1 (default: the first accelerator)")
    add("-q", "--quiet", action="store_true", help="print results only")
    add = parser.add_argument_group("texts and rows").add_argument
    add("--max-length", type=int, help="tokens in a segment of text (default: 2048, or the smallest context)")
    add("--stride", type=int, help="tokens between the starts of segments; only the last N of each are scored "
        "(default: segments do not overlap)")  # fmt: skip
    add("--bos", nargs="?", const="always", metavar="{auto,always,never}", help="where to put the "
        "beginning-of-sequence token: auto follows the tokenizer, always (or no value) puts it before every segment "
        "(default: auto)")  # fmt: skip
    add("--no-bos", dest="bos", action="store_const", const="never", help="the same as --bos never")
    add("--batch-size", metavar="N", type=_batch_size, help="segments or requests in a batch, or auto; does not change "
        "the figures (default: auto)")  # fmt: skip
    add("--split", help="split of --data if it is a Hub dataset or a folder (default: validation)")
    add("--data-name", help="configuration of the Hub dataset in --data")
    add("--columns", metavar="NAMES", help="new names for columns of --data: text=review,label=stars")
    add = parser.add_argument_group("tasks and completions").add_argument
    add("--apply-chat-template", action="store_true", help="ask through the chat template of each model")
    add("--system-prompt", metavar="TEXT", help="system message before each conversation")
    add = parser.add_argument_group("completions").add_argument
    add("--max-new-tokens", type=int, help="tokens to generate (default: 64)")
    add("--sample", action="store_true", help="draw tokens at random instead of taking the most likely one")
    add("--temperature", type=float, help="temperature with --sample (default: 1)")
    add("--top-p", type=float, help="probability mass to draw from with --sample (default: 1)")
    add("--seed", type=int, help="random seed for few-shot examples and --sample (default: 42)")
    add = parser.add_argument_group("models").add_argument
    add("--tokenizer", metavar="MODEL", help="checkpoint to take the tokenizer from (default: MODEL)")
    add("--base", help="base model of an adapter (default: the one that the adapter names)")
    add("--revision", help="branch, tag or commit of Hub checkpoints")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoints")
    return parser


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number")
    return int(text)


def eval_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = eval_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(
        console,
        lambda: _run(_values(parser, arguments), console),
        less_memory="Use --batch-size 1, a smaller --max-length or --dtype bfloat16.",
    )


def _values(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse and check the options.

    Raises:
        ValueError: an option is unknown or has no value, or no model is named.
    """
    values = vars(parsed(parser, arguments))
    if not values.get("models"):
        raise ValueError("The model is missing. Name models before the options: loraprune eval MODEL --ppl wikitext2.")
    return values


def _run(values: dict[str, Any], console: Console) -> int:
    quiet = values.pop("quiet", False)
    models = values.pop("models")
    values.setdefault("output", DEFAULT_OUTPUT)
    config = EvaluationConfig(**values)
    for model in models:
        check_no_preset(model)
    begin("eval", *models)
    from loraprune.display.steps import StepsProgress
    from loraprune.measure.evaluation.evaluate import evaluate
    from loraprune.processes.ranks import from_main
    from loraprune.report.evaluation import show_entries

    with StepsProgress(console, quiet=quiet, rates=True) as progress:
        results = evaluate(models, config, progress=progress)
    out = results_console()
    show_entries(out, results.entries)
    if from_main(lambda: _kept(results, config.output)):
        print_line(out, f"Results: {config.output}", whole=True)
        return 0
    print_line(console, f"error: {config.output} does not hold all results.", "red")
    return FAILED


def _kept(results: Results, output: Path | None) -> bool:
    """Whether all results are in the file; a full disk does not stop an evaluation."""
    from loraprune.measure.evaluation.results import ResultsError, read_results

    assert output is not None
    try:
        kept = read_results(output)
    except ResultsError:
        return False
    return all(kept.find(entry.key) is not None for entry in results.entries)
