"""The push of a finished result to the Hub, made by the first process."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TypeVar

from loraprune.processes.ranks import is_main
from loraprune.pruning.errors import InterruptedRunError
from loraprune.recipes.result import RunResult
from loraprune.record.places import WriteError
from loraprune.tasks.options import RunOptions

logger = logging.getLogger("loraprune")

Result = TypeVar("Result", bound=RunResult)


def pushed(result: Result, options: RunOptions) -> Result:
    """Push the result if the options ask for it; if the Hub does not accept it, log the command to push again.

    Raises:
        InterruptedRunError: the push was stopped; the result is in its folder.
    """
    target, folder = options.hub_target(), options.output
    if target is None or folder is None or not is_main():
        return result
    logger.info("Pushing %s to %s", folder, target.name)
    try:
        return replace(result, pushed=target.push(folder))
    except WriteError as error:
        logger.error("%s The result is in %s; push it again: %s", error, folder, target.command(folder))
        return result
    except KeyboardInterrupt:
        again = target.command(folder)
        raise InterruptedRunError(f"Stopped during the push. The result is in {folder}; push it: {again}") from None
