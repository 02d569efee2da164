"""The state of a run without training, beside its output: what it was started with, and the steps it has finished."""

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
    """What the interrupted run of an output was started with; None where there is none."""
    path = None if options.run_dir is None else options.run_dir / ONESHOT_RUN_FILE
    if path is None or not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Start again with --overwrite.") from error
    return found


def check_oneshot_folder(options: RunOptions, inputs: tuple[object, ...]) -> None:
    """Make sure that the state of a run may be kept beside its output, and is there if the run is resumed.

    Raises:
        ValueError: it may not, or is not; or an interrupted run would be lost.
    """
    if options.run_dir is None:
        return
    check_state_folder(options, inputs)
    begun = _read(options) is not None
    trained = options.run_dir.is_dir() and last_checkpoint(options.run_dir) is not None
    if options.resume and not begun:
        raise ValueError(f"There is nothing to resume: {options.run_dir} holds no saved state. Start without --resume.")
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
    """Widths that a run which is resumed was started with, where it was started with some."""
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
    """Make sure that a run which is resumed is the one that was started.

    Raises:
        ValueError: it is not; the message lists what differs.
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
    """Finished steps of a run that is about to start or to go on; the folder is gone when the run ends well.

    Runs that look at no data are too short to be worth it.

    Raises:
        InterruptedRunError: the run was stopped, and can be continued.
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
                f"Stopped; nothing was written to the output folder. What was finished is saved in {folder}: the same "
                "command with --resume continues from there."
            ) from None
        raise
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    return list(folder.glob(f"{STEP_PREFIX}*.safetensors"))
