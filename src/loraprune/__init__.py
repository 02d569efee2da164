"""Structured pruning of large language models while they are fine-tuned with LoRA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraprune._version import __version__
from loraprune.registration import register_with_transformers

if TYPE_CHECKING:
    from loraprune.estimation.result import Estimate
    from loraprune.export import save_pruned
    from loraprune.plan import Plan
    from loraprune.recipes.benchmark.bench import bench
    from loraprune.recipes.benchmark.config import BenchConfig
    from loraprune.recipes.benchmark.result import BenchResult, read_bench
    from loraprune.recipes.compare_criteria import ComparisonConfig, CriteriaComparison, compare_criteria
    from loraprune.recipes.evaluations.config import EvaluationConfig
    from loraprune.recipes.evaluations.evaluate import evaluate
    from loraprune.recipes.joint import PruneResult, prune
    from loraprune.recipes.oneshot import OneshotResult, oneshot
    from loraprune.recipes.oneshot_config import OneshotConfig
    from loraprune.recipes.options import RunOptions
    from loraprune.recipes.planning.config import EstimateConfig
    from loraprune.recipes.planning.estimate import estimate
    from loraprune.recipes.recover import recover
    from loraprune.recipes.runs.compare import compare_runs
    from loraprune.report.runs import RunsComparison
    from loraprune.runtimes.semi_structured_folder import load_semi_structured
    from loraprune.sparse_lora import keep_zeros_
    from loraprune.structure import Structure, describe
    from loraprune.training.callback import PruningCallback
    from loraprune.training.config import PruningConfig
    from loraprune.training.pst_callback import PstCallback

__all__ = [
    "BenchConfig",
    "BenchResult",
    "ComparisonConfig",
    "CriteriaComparison",
    "Estimate",
    "EstimateConfig",
    "EvaluationConfig",
    "OneshotConfig",
    "OneshotResult",
    "Plan",
    "PruneResult",
    "PruningCallback",
    "PruningConfig",
    "PstCallback",
    "RunOptions",
    "RunsComparison",
    "Structure",
    "__version__",
    "bench",
    "compare_criteria",
    "compare_runs",
    "describe",
    "estimate",
    "evaluate",
    "keep_zeros_",
    "load_semi_structured",
    "oneshot",
    "prune",
    "read_bench",
    "recover",
    "save_pruned",
]

_HOMES = {
    "BenchConfig": "loraprune.recipes.benchmark.config",
    "BenchResult": "loraprune.recipes.benchmark.result",
    "ComparisonConfig": "loraprune.recipes.compare_criteria",
    "CriteriaComparison": "loraprune.recipes.compare_criteria",
    "EvaluationConfig": "loraprune.recipes.evaluations.config",
    "Estimate": "loraprune.estimation.result",
    "EstimateConfig": "loraprune.recipes.planning.config",
    "OneshotConfig": "loraprune.recipes.oneshot_config",
    "OneshotResult": "loraprune.recipes.oneshot",
    "Plan": "loraprune.plan",
    "PruneResult": "loraprune.recipes.joint",
    "PruningCallback": "loraprune.training.callback",
    "PruningConfig": "loraprune.training.config",
    "PstCallback": "loraprune.training.pst_callback",
    "RunOptions": "loraprune.recipes.options",
    "RunsComparison": "loraprune.report.runs",
    "Structure": "loraprune.structure",
    "bench": "loraprune.recipes.benchmark.bench",
    "compare_criteria": "loraprune.recipes.compare_criteria",
    "compare_runs": "loraprune.recipes.runs.compare",
    "describe": "loraprune.structure",
    "evaluate": "loraprune.recipes.evaluations.evaluate",
    "estimate": "loraprune.recipes.planning.estimate",
    "keep_zeros_": "loraprune.sparse_lora",
    "load_semi_structured": "loraprune.runtimes.semi_structured_folder",
    "oneshot": "loraprune.recipes.oneshot",
    "prune": "loraprune.recipes.joint",
    "read_bench": "loraprune.recipes.benchmark.result",
    "recover": "loraprune.recipes.recover",
    "save_pruned": "loraprune.export",
}


register_with_transformers()


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import loraprune`` and ``--help`` stay instant."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
