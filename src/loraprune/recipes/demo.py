"""The main job on the bundled model: half its heads and channels go while LoRA tunes it."""

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
    """Prune the bundled model to ``output``, replacing what an earlier demo left there.

    Heads and channels lose the same share (allocation ``uniform``), so that a ratio of a half is half of both. The
    model is tuned on the standard library's text and measured on modules that neither it nor its training saw.

    Raises:
        OutputExistsError: the folder holds something that is no result of loraprune.
    """
    is_own = _is_demo_result(output)
    if is_filled(output) and not is_own:
        raise OutputExistsError(f"{output} holds something else than the result of a demo. Name another folder (-o).")
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
            raise InterruptedRunError("Stopped; nothing was written. The demo starts from the beginning.") from None
