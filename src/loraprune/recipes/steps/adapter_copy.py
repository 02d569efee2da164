"""The unmerged adapter of a run, with the files needed to load it on its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from loraprune.checkpoint.adapter import FACTS_FILE, MASKS_FILE, REFITTED_FILE, facts_text
from loraprune.processes.ranks import is_main
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.pst import PstRun

if TYPE_CHECKING:
    from pathlib import Path

    from loraprune.pruning.callback import PruningCallback
    from loraprune.recipes.steps.prepared import PreparedTraining


def adapter_copy(model: Any, pruning: PruningCallback, prepared: PreparedTraining, run_dir: Path) -> Path | None:
    """Save the unmerged adapter if ``save_adapter`` is set; return its folder, or None."""
    if not (prepared.options.save_adapter and prepared.options.output):
        return None
    assert pruning.run is not None
    refitted = {}
    if isinstance(pruning.run, GroupRun) and not prepared.recovery:
        refitted = pruning.run.repaired_weights(model)  # collective if the weights are sharded
    if not is_main():
        return None
    folder = run_dir / "adapter"
    model.save_pretrained(folder)
    course = facts_text(keeps_zeros=bool(prepared.keep_zeros))
    if isinstance(pruning.run, PstRun):
        save_file(pruning.run.masks(), folder / MASKS_FILE)
    elif isinstance(pruning.run, GroupRun) and not prepared.recovery:
        save_file(refitted, folder / REFITTED_FILE)
        course = facts_text(
            plan=pruning.run.plan,
            dimensions=prepared.pruning.target.dimensions,
            keep_layers=prepared.pruning.target.keep_layers,
        )
    (folder / FACTS_FILE).write_text(course, encoding="utf-8")
    return folder
