"""Structured pruning of large language models while they are fine-tuned with LoRA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraprune._version import __version__
from loraprune.checkpoint.register import register_with_transformers
from loraprune.compat.moved import find_moved_modules

if TYPE_CHECKING:
    from loraprune.checkpoint.exports.semi_structured import load_semi_structured
    from loraprune.checkpoint.save import save_pruned
    from loraprune.measure.benchmark.bench import bench
    from loraprune.measure.benchmark.config import BenchConfig
    from loraprune.measure.benchmark.result import BenchResult, read_bench
    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.measure.estimation.estimate import estimate
    from loraprune.measure.estimation.result import Estimate
    from loraprune.measure.evaluation.config import EvaluationConfig
    from loraprune.measure.evaluation.evaluate import evaluate
    from loraprune.pruning.callback import PruningCallback
    from loraprune.pruning.config import PruningConfig
    from loraprune.pruning.oneshot_config import OneshotConfig
    from loraprune.pruning.pst import PstCallback
    from loraprune.recipes.compare_criteria import ComparisonConfig, CriteriaComparison, compare_criteria
    from loraprune.recipes.oneshot import OneshotResult, oneshot
    from loraprune.recipes.prune import PruneResult, prune
    from loraprune.recipes.recover import recover
    from loraprune.report.comparison.compare import compare_runs
    from loraprune.report.comparison.result import RunsComparison
    from loraprune.sparsity.masked_lora import keep_zeros_
    from loraprune.structure.describe import describe
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan
    from loraprune.tasks.options import RunOptions

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
    "BenchConfig": "loraprune.measure.benchmark.config",
    "BenchResult": "loraprune.measure.benchmark.result",
    "ComparisonConfig": "loraprune.recipes.compare_criteria",
    "CriteriaComparison": "loraprune.recipes.compare_criteria",
    "EvaluationConfig": "loraprune.measure.evaluation.config",
    "Estimate": "loraprune.measure.estimation.result",
    "EstimateConfig": "loraprune.measure.estimation.config",
    "OneshotConfig": "loraprune.pruning.oneshot_config",
    "OneshotResult": "loraprune.recipes.oneshot",
    "Plan": "loraprune.structure.plan",
    "PruneResult": "loraprune.recipes.prune",
    "PruningCallback": "loraprune.pruning.callback",
    "PruningConfig": "loraprune.pruning.config",
    "PstCallback": "loraprune.pruning.pst",
    "RunOptions": "loraprune.tasks.options",
    "RunsComparison": "loraprune.report.comparison.result",
    "Structure": "loraprune.structure.dimensions",
    "bench": "loraprune.measure.benchmark.bench",
    "compare_criteria": "loraprune.recipes.compare_criteria",
    "compare_runs": "loraprune.report.comparison.compare",
    "describe": "loraprune.structure.describe",
    "evaluate": "loraprune.measure.evaluation.evaluate",
    "estimate": "loraprune.measure.estimation.estimate",
    "keep_zeros_": "loraprune.sparsity.masked_lora",
    "load_semi_structured": "loraprune.checkpoint.exports.semi_structured",
    "oneshot": "loraprune.recipes.oneshot",
    "prune": "loraprune.recipes.prune",
    "read_bench": "loraprune.measure.benchmark.result",
    "recover": "loraprune.recipes.recover",
    "save_pruned": "loraprune.checkpoint.save",
}


register_with_transformers()
find_moved_modules()


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import loraprune`` and ``--help`` stay instant."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
