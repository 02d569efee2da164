"""Logs of a Trainer's integrations: a check that they can be written, and copies of TensorBoard's files."""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.options.near import did_you_mean

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("loraprune")

FOLDER = "runs"
"""Folder of TensorBoard's event files, in the run's folder and in the output."""

EVENT_PACKAGES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Packages (any one suffices) of integrations that have another name; for an empty tuple, transformers checks."""


def check_report_to(arguments: TrainingArguments) -> None:
    """Check, before any long work, that the requested integrations can log.

    Raises:
        ValueError: transformers has no such integration, or its package is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    given = arguments.report_to
    wanted = [given] if isinstance(given, str) else list(given or [])
    for name in wanted:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            hint = did_you_mean(str(name), sorted(INTEGRATION_TO_CALLBACK))
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to is {name!r}, which is none of {known}.{hint}")
        packages = EVENT_PACKAGES.get(name, (name,))
        if packages and not any(find_spec(package) for package in packages):
            raise ValueError(
                f"report_to is {name!r}, and the package {packages[0]} is not installed. Install it (pip install "
                f"{packages[0]}), or leave --report-to out."
            )


def copy_event_files(run_dir: Path, folder: Path) -> None:
    """Copy TensorBoard's event files, if any, into a folder. An error here does not stop the run."""
    if not (run_dir / FOLDER).is_dir():
        return
    try:
        shutil.copytree(run_dir / FOLDER, folder / FOLDER)
    except OSError as error:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        logger.warning("warning: TensorBoard's event files could not be copied: %s", error)
