"""``loraprune eval``: what models reach, with everything that the figures depend on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.cli.console import FAILED, open_console, print_line, quiet_libraries, report_errors, results_console
from loraprune.cli.parsing import Parser, parsed

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.evaluation.results import Results

_DESCRIPTION = """Measure models: perplexity of texts, tasks, completions of prompts, accuracy on labelled data.

MODEL is a checkpoint's folder or hub name, or those of a LoRA adapter. Of several models, all are compared with the
first. Figures are kept in a file with the data, the settings and the versions that they belong to, and what is there
already is not measured again. With nothing asked for, perplexity is measured on WikiText-2."""
_EXAMPLES = """examples:
  loraprune eval MODEL --ppl wikitext2 ptb c4
  loraprune eval DENSE PRUNED --ppl wikitext2=wiki.test.raw notes.txt --tasks commonsense
  loraprune eval DENSE PRUNED --tasks piqa items.jsonl --prompts "Once upon a time" --limit 100
  loraprune eval CLASSIFIER --data images/
"""
DEFAULT_OUTPUT = Path("evaluation.json")


def eval_parser() -> Parser:
    """The options of the command; what was not given is left to the configuration."""
    parser = Parser(
        prog="loraprune eval",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="loraprune eval MODEL... [--ppl TEXT...] [--tasks TASK...] [--prompts [TEXT...]] [--data DATA] [options]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a checkpoint's folder or its hub name")
    add = parser.add_argument_group("what is measured").add_argument
    add("--ppl", nargs="+", metavar="TEXT", help="perplexity: wikitext2, ptb, c4, a text file, or NAME=FILE; a file "
        "under the name of a set is a local copy of it")  # fmt: skip
    add("--tasks", nargs="+", metavar="TASK", help="tasks of lm-eval, commonsense (the seven of the LoRAPrune paper), "
        "mmlu, or files of items")  # fmt: skip
    add("--prompts", nargs="*", metavar="TEXT", help="texts to go on from, or a file of them (without any: our own)")
    add("--data", metavar="DATA", help="of classifiers, labelled images or texts; of encoder–decoder models, pairs; in "
        "the forms that loraprune prune takes")  # fmt: skip
    add = parser.add_argument_group("how").add_argument
    add("--max-length", type=int, metavar="N", help="tokens of a segment of text (2048, or the smallest context), of "
        "a task's request and of a row (the context)")  # fmt: skip
    add("--bos", metavar="{auto,always,never}", help="where the beginning-of-sequence token is; auto: before a text, "
        "as the tokenizer does; always: before every segment (auto)")  # fmt: skip
    add("--stride", type=int, metavar="N", help="tokens between the starts of segments; only the last N of a segment "
        "are scored (segments one after the other)")  # fmt: skip
    add("--limit", type=int, metavar="N", help="only the first segments, items and rows")
    add("--num-fewshot", type=int, metavar="N", help="examples before an item of a task (as the task says)")
    add("--split", help="of a hub data set or a folder given as --data (validation)")
    add("--data-name", metavar="NAME", help="configuration of a hub data set given as --data")
    add("--batch-size", metavar="N", type=_batch_size, help="segments or requests at once, or auto; changes no figure "
        "(auto)")  # fmt: skip
    add("--seed", type=int, metavar="N", help="of examples and tokens that are drawn (42)")
    add = parser.add_argument_group("completions").add_argument
    add("--max-new-tokens", type=int, metavar="N", help="of a completion (64)")
    add("--sample", action="store_true", help="draw tokens (takes the likeliest)")
    add("--temperature", type=float, metavar="T", help="of drawn tokens (1)")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest tokens of this share (1)")
    add = parser.add_argument_group("models").add_argument
    add("--dtype", metavar="{float32,bfloat16,float16}", help="to compute in (the checkpoint's; float32 on a CPU)")
    add("--device", help="such as cpu or cuda:1 (the first accelerator)")
    add("--tokenizer", metavar="NAME", help="checkpoint to take the tokenizer from (MODEL's own)")
    add("--base", metavar="NAME", help="base of an adapter (the one that it names)")
    add("--revision", help="branch, tag or commit of hub checkpoints")
    add("--trust-remote-code", action="store_true", help="run code that checkpoints bring (off)")
    add = parser.add_argument_group("results").add_argument
    add("-o", "--output", type=Path, metavar="FILE.json", help="to keep results in (evaluation.json)")
    add("--force", action="store_true", help="measure again what the file holds already")
    add("-q", "--quiet", action="store_true", help="results only")
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
    if not arguments or "-h" in arguments or "--help" in arguments:
        parser.print_help() if arguments else parser.print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(_values(parser, arguments), console))


def _values(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """What was given.

    Raises:
        ValueError: an option is unknown or misses its value, or no model is named.
    """
    values = vars(parsed(parser, arguments))
    if not values.get("models"):
        raise ValueError("No model was given. Name models before the options: loraprune eval MODEL --ppl wikitext2.")
    return values


def _run(values: dict[str, Any], console: Console) -> int:
    from loraprune.cli.progress import StepsProgress
    from loraprune.measure.evaluation.config import EvaluationConfig
    from loraprune.measure.evaluation.evaluate import evaluate
    from loraprune.processes.ranks import from_main
    from loraprune.report.evaluation import show_entries

    quiet_libraries()
    quiet = values.pop("quiet", False)
    models = values.pop("models")
    values.setdefault("output", DEFAULT_OUTPUT)
    config = EvaluationConfig(**values)
    with StepsProgress(console, quiet=quiet, rates=True) as progress:
        results = evaluate(models, config, progress=progress)
    out = results_console()
    show_entries(out, results.entries)
    if from_main(lambda: _kept(results, config.output)):
        print_line(out, f"Results: {config.output}")
        return 0
    print_line(console, f"error: {config.output} does not hold all results.", "red")
    return FAILED


def _kept(results: Results, output: Path | None) -> bool:
    """Whether all results are in the file: a disk that is full stops no evaluation."""
    from loraprune.measure.evaluation.results import ResultsError, read_results

    assert output is not None
    try:
        kept = read_results(output)
    except ResultsError:
        return False
    return all(kept.find(entry.key) is not None for entry in results.entries)
