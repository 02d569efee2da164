"""Shared parts of all commands: consoles, quiet libraries, readable errors, results."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loraprune._version import __version__
from loraprune.display.console import CleanConsole, ConsoleHandler, print_line
from loraprune.display.terminal import one_line
from loraprune.processes.ranks import OtherProcessError, is_main
from loraprune.processes.shared_work import is_of_another, is_told
from loraprune.pruning.errors import DryRunError, InterruptedRunError, memory_that_ran_out
from loraprune.pruning.stopping import STOPPED
from loraprune.record.places import WriteError

if TYPE_CHECKING:
    from loraprune.recipes.prune import PruneResult
    from loraprune.recipes.result import RunResult
    from loraprune.record.report_data import ReportData
    from loraprune.tasks.options import RunOptions

WRONG_INVOCATION = 2
FAILED = 1


def open_console(*, quiet: bool = False) -> Console:
    """Open the console on standard error for progress and messages; results go to standard output.

    Call this before importing transformers, which reads the environment variables that this sets.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    console = CleanConsole(stderr=True, quiet=not is_main())
    logger = logging.getLogger("loraprune")
    logger.handlers = [ConsoleHandler(console)]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        # A user of the command cannot act on deprecations inside other libraries.
        if not issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
            logger.warning("warning: %s", message)

    warnings.showwarning = show
    return console


def begin(*words: object) -> None:
    """Print the first line of a command, import transformers, and silence the libraries.

    The line comes first because the import takes seconds. Our own display replaces the progress bars and messages of
    the libraries.

    Args:
        words: command and models; without any, nothing is printed.
    """
    if words:
        logging.getLogger("loraprune").info("loraprune %s · %s", __version__, " ".join(map(str, words)))
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read by datasets when it is imported
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # bitsandbytes warns for every layer whose input is not in 16 bits, as on a CPU.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")


def report_errors(console: Console, work: Callable[[], int], *, less_memory: str = "Use a machine with more.") -> int:
    """Run a command's work; turn errors that the user can fix into one line and an exit code.

    Args:
        console: console for the line.
        work: the work; returns an exit code.
        less_memory: sentence on what to do if memory runs out.
    """
    try:
        return work()
    except DryRunError as error:
        print_line(console, error, "dim")
        return 0
    except InterruptedRunError as error:
        print_line(console, error, "yellow")
        return STOPPED
    except KeyboardInterrupt:
        console.print("Stopped.", style="yellow")
        return STOPPED
    except OtherProcessError:
        return FAILED
    except (ArithmeticError, WriteError) as error:
        print_line(console, f"error: {error}", "red")
        return FAILED
    except (ValueError, OSError) as error:
        if os.environ.get("LORAPRUNE_TRACEBACK"):
            raise
        # For example, an error of one node's disk, which the main process does not see.
        if isinstance(error, OSError) and not is_main() and not is_told(error):
            print(f"error: {one_line(str(error))}", file=sys.stderr)
        print_line(console, f"error: {error}", "red")
        return WRONG_INVOCATION
    except Exception as error:
        if is_of_another(error):
            return FAILED
        ran_out = memory_that_ran_out(error)
        if ran_out is None or os.environ.get("LORAPRUNE_TRACEBACK"):
            raise
        if not is_main():
            print(f"error: {ran_out}", file=sys.stderr)
        print_line(console, f"error: {ran_out} {less_memory}", "red")
        return FAILED


def results_console() -> Console:
    """Open a console on standard output, for the results of a command."""
    return CleanConsole(file=sys.stdout, quiet=not is_main())


def plain_table(*headings: str, left: int = 1, header_style: str = "table.header") -> Table:
    """Make a table with a line under its header; the first ``left`` columns are left-aligned, the others right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=header_style)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position < left else "right")
    return table


# Output of a finished run.


def show_result(console: Console, result: PruneResult) -> None:
    """Print the table, the completions, the notes, and the paths of the result."""
    show_report(console, result.report)
    show_end(console, result)


def show_report(console: Console, report: ReportData) -> None:
    """Print the table and the completions."""
    from loraprune.report.before_after import comparison_table

    console.print(comparison_table(report))
    for completion in report.completions:
        for label, text in (
            ("prompt", completion.prompt),
            (report.before, completion.dense),
            ("without recovery", completion.unrecovered),
            (report.after, completion.pruned),
        ):
            if text is not None:
                console.print(Text(label, style="bold"))
                console.print(Text("\n".join("  " + line for line in text.rstrip().splitlines()) + "\n"))


def show_end(console: Console, result: RunResult) -> None:
    """Print the notes, and the paths of the result."""
    from loraprune.checkpoint.exports.overview import runtimes_of

    for note in result.report.notes:
        print_line(console, note, "yellow")
    if result.output is not None:
        print_line(console, f"Checkpoint: {result.output}", whole=True)
        page = result.output / "report.html"
        if page.is_file():
            print_line(console, f"Report:     {page}", whole=True)
        if result.pushed is not None:
            print_line(console, f"On the Hub: {result.pushed}")
        show_runtimes(console, runtimes_of(result.model))


def check_pushed(result: RunResult, options: RunOptions) -> None:
    """Repeat at the end that a push failed; its reason was printed before the result.

    Raises:
        WriteError: the push failed.
    """
    target = options.hub_target()
    if target is not None and result.output is not None and result.pushed is None and is_main():
        raise WriteError(f"The result is not on the Hub. Push it again: {target.command(result.output)}")


def show_runtimes(console: Console, runtimes: Iterable[str], label: str = "Loads in:", indent: int = 12) -> None:
    """Print the runtimes that load a result."""
    for runtime in runtimes:
        print_line(console, f"{label:{indent - 1}} {runtime}", indent=indent)
        label = ""
