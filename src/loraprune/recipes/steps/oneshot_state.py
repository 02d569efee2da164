"""Saved state of a run without training: its options and data, and its finished steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loraprune.processes.ranks import is_main, num_processes
from loraprune.pruning.errors import InterruptedRunError
from loraprune.pruning.resume import last_checkpoint
from loraprune.recipes.steps.folders import check_state_folder
from loraprune.recipes.steps.prepared import PreparedOneshot
from loraprune.recipes.steps.same_run import rows_fingerprint
from loraprune.record.atomic import write_text
from loraprune.record.codec import encode
from loraprune.record.saved_steps import STEP_PREFIX, SavedSteps
from loraprune.tasks.options import RunOptions

ONESHOT_RUN_FILE = f"{STEP_PREFIX}run.json"


def _read(options: RunOptions) -> dict[str, Any] | None:
    """Read the options and data of an interrupted run; None if there is none."""
    path = None if options.run_dir is None else options.run_dir / ONESHOT_RUN_FILE
    if path is None or not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Start again with --overwrite.") from error
    return found


def check_oneshot_folder(options: RunOptions, inputs: tuple[object, ...]) -> None:
    """Check that the run's state can be saved beside its output, and that it exists if the run is resumed.

    Raises:
        ValueError: it cannot be saved, or does not exist, or an interrupted run would be lost.
    """
    if options.run_dir is None:
        return
    check_state_folder(options, inputs)
    begun = _read(options) is not None
    trained = options.run_dir.is_dir() and last_checkpoint(options.run_dir) is not None
    if options.resume and not begun:
        raise ValueError(f"There is nothing to resume: {options.run_dir} has no saved state. Start without --resume.")
    if begun and not (options.resume or options.overwrite):
        raise ValueError(
            f"{options.run_dir} holds an interrupted run. Continue it with --resume, or start again with --overwrite."
        )
    if trained and not options.overwrite:
        raise ValueError(
            f"{options.run_dir} holds an interrupted run with training. Continue it with its own command and --resume, "
            "or start again with --overwrite."
        )


def widths_of_begun_run(options: RunOptions) -> str | None:
    """Return the widths that a resumed run was started with, or None."""
    begun = _read(options) if options.resume else None
    widths = None if begun is None else begun["settings"].get("widths")
    return None if widths is None else str(widths)


def _facts(prepared: PreparedOneshot) -> dict[str, Any]:
    return {
        "model": prepared.name,
        "settings": encode(prepared.settings()),
        "dtype": str(prepared.computed_dtype),
        "data": rows_fingerprint(prepared.train_rows) if len(prepared.train_rows) else "none",
        "processes": num_processes(),
    }


def check_same_oneshot(prepared: PreparedOneshot) -> None:
    """Check that a resumed run has the options and data that it was started with.

    Raises:
        ValueError: it does not; the message lists the differences.
    """
    begun = _read(prepared.options) if prepared.options.resume else None
    if begun is None:
        return
    before, now = ({**facts.pop("settings"), **facts} for facts in (begun, _facts(prepared)))
    changed = [f"{name}: {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"The interrupted run was started differently ({', '.join(changed)}). Resume it with the same options, or "
            "start again with --overwrite."
        )


@contextmanager
def saved_steps(prepared: PreparedOneshot) -> Iterator[SavedSteps]:
    """Yield the finished steps of a new or resumed run; a successful run removes their folder.

    Runs without calibration data are short, so they save no steps.

    Raises:
        InterruptedRunError: the run was stopped and can be resumed.
    """
    folder = prepared.options.run_dir
    if folder is None or not prepared.oneshot.needs_data:
        yield SavedSteps()
        return
    if is_main() and not prepared.options.resume:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(folder / ONESHOT_RUN_FILE, json.dumps(_facts(prepared)))
    try:
        yield SavedSteps(folder)
    except BaseException as error:
        left = _steps(folder)
        if is_main() and not left:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt) and left:
            raise InterruptedRunError(
                f"Stopped; nothing was written to the output folder. Finished steps are saved in {folder}: the same "
                "command with --resume continues from there."
            ) from None
        raise
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return list(folder.glob(f"{STEP_PREFIX}*.safetensors"))
