"""The demo: prune half of the heads and channels of the bundled model during LoRA tuning."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.data.demo import PROMPT, demo_data, demo_model
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.errors import InterruptedRunError
from loraprune.recipes.prune import PruneResult, prune
from loraprune.record.places import OutputExistsError
from loraprune.record.replaceable import check_output, is_filled
from loraprune.record.run_record import RECORD_FILE, RunRecord
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from transformers import TrainerCallback

_TRAINING: dict[str, Any] = {
    "max_steps": 160,
    "per_device_train_batch_size": 8,
    "max_length": 256,
    "learning_rate": 2e-3,
    "logging_steps": 2,
}


def _is_demo_result(folder: Path) -> bool:
    try:
        return Path(RunRecord.read(folder / RECORD_FILE).base_model).name == demo_model().name
    except ValueError:
        return False


def run_demo(
    output: Path,
    *,
    ratio: float = 0.5,
    training: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    command: str | None = None,
    verbosity: str = "warnings",
) -> PruneResult:
    """Prune the bundled model to ``output``, replacing the result of an earlier demo.

    The allocation is ``uniform``, so a ratio of 0.5 removes half of the heads and half of the channels. The model is
    tuned on text of Python's standard library and measured on modules that were in neither of its training sets.

    Raises:
        OutputExistsError: the folder has contents other than the result of a demo.
    """
    is_own = _is_demo_result(output)
    if is_filled(output) and not is_own:
        raise OutputExistsError(f"{output} is not the result of a demo. Name another folder (-o).")
    check_output(output, overwrite=is_own)
    options = RunOptions(
        output=output,
        overwrite=True,
        eval_sequences=96,
        prompt=PROMPT,
        unrecovered=True,
        command=command,
    )
    with tempfile.TemporaryDirectory(prefix="loraprune-demo-") as scratch:
        train, held_out = demo_data(Path(scratch))
        try:
            return prune(
                demo_model(),
                train,
                PruningConfig(ratio=ratio, allocation="uniform", cuts=4, calibration_sequences=32),
                training={**_TRAINING, **(training or {})},
                options=replace(options, eval_data=str(held_out)),
                callbacks=callbacks,
                verbosity=verbosity,
            )
        except InterruptedRunError:
            if options.run_dir is not None:
                shutil.rmtree(options.run_dir, ignore_errors=True)
            raise InterruptedRunError("Stopped; nothing was written. Run the demo again to start over.") from None
