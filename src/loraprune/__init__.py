"""Structured pruning of large language models while they are fine-tuned with LoRA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraprune._version import __version__
from loraprune.registration import register_with_transformers

if TYPE_CHECKING:
    from loraprune.export import save_pruned
    from loraprune.plan import Plan
    from loraprune.recipes.compare_criteria import ComparisonConfig, CriteriaComparison, compare_criteria
    from loraprune.recipes.joint import PruneResult, prune
    from loraprune.recipes.oneshot import OneshotResult, oneshot
    from loraprune.recipes.oneshot_config import OneshotConfig
    from loraprune.recipes.options import RunOptions
    from loraprune.recipes.recover import recover
    from loraprune.runtimes.semi_structured_folder import load_semi_structured
    from loraprune.sparse_lora import keep_zeros_
    from loraprune.structure import Structure, describe
    from loraprune.training.callback import PruningCallback
    from loraprune.training.config import PruningConfig
    from loraprune.training.pst_callback import PstCallback

__all__ = [
    "ComparisonConfig",
    "CriteriaComparison",
    "OneshotConfig",
    "OneshotResult",
    "Plan",
    "PruneResult",
    "PruningCallback",
    "PruningConfig",
    "PstCallback",
    "RunOptions",
    "Structure",
    "__version__",
    "compare_criteria",
    "describe",
    "keep_zeros_",
    "load_semi_structured",
    "oneshot",
    "prune",
    "recover",
    "save_pruned",
]

_HOMES = {
    "ComparisonConfig": "loraprune.recipes.compare_criteria",
    "CriteriaComparison": "loraprune.recipes.compare_criteria",
    "OneshotConfig": "loraprune.recipes.oneshot_config",
    "OneshotResult": "loraprune.recipes.oneshot",
    "Plan": "loraprune.plan",
    "PruneResult": "loraprune.recipes.joint",
    "PruningCallback": "loraprune.training.callback",
    "PruningConfig": "loraprune.training.config",
    "PstCallback": "loraprune.training.pst_callback",
    "RunOptions": "loraprune.recipes.options",
    "Structure": "loraprune.structure",
    "compare_criteria": "loraprune.recipes.compare_criteria",
    "describe": "loraprune.structure",
    "keep_zeros_": "loraprune.sparse_lora",
    "load_semi_structured": "loraprune.runtimes.semi_structured_folder",
    "oneshot": "loraprune.recipes.oneshot",
    "prune": "loraprune.recipes.joint",
    "recover": "loraprune.recipes.recover",
    "save_pruned": "loraprune.export",
}


register_with_transformers()


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import loraprune`` and ``--help`` stay instant."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
