"""Structured pruning of large language models while they are fine-tuned with LoRA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraprune._version import __version__
from loraprune.checkpoint.register import register_with_transformers
from loraprune.compat.moved import find_moved_modules

if TYPE_CHECKING:
    from loraprune.allocation.allocate import plan_for
    from loraprune.allocation.schedule import Schedule
    from loraprune.allocation.target import Target
    from loraprune.architectures import UnsupportedArchitectureError
    from loraprune.architectures.values import DescriptionError
    from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
    from loraprune.checkpoint.exports.semi_structured import load_semi_structured
    from loraprune.checkpoint.finite import NonFiniteWeightsError
    from loraprune.checkpoint.load import CheckpointError
    from loraprune.checkpoint.load_back import LoadBackError
    from loraprune.checkpoint.open import load
    from loraprune.checkpoint.save import save, save_pruned
    from loraprune.layers.quantized.layout import UnsupportedQuantizationError
    from loraprune.measure.benchmark.bench import bench
    from loraprune.measure.benchmark.config import BenchConfig
    from loraprune.measure.benchmark.result import BenchFileError, BenchResult, read_bench
    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.measure.estimation.estimate import estimate
    from loraprune.measure.estimation.result import Estimate
    from loraprune.measure.evaluation.config import EvaluationConfig
    from loraprune.measure.evaluation.evaluate import evaluate
    from loraprune.measure.evaluation.results import ResultsError
    from loraprune.pruning.callback import PruningCallback, PstCallback
    from loraprune.pruning.config import PruningConfig
    from loraprune.pruning.errors import BadResultError, InterruptedRunError, TrainingDivergedError
    from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
    from loraprune.pruning.pruner import Pruner
    from loraprune.recipes.compare_criteria import CriteriaComparison, compare_criteria
    from loraprune.recipes.comparison_config import ComparisonConfig
    from loraprune.recipes.oneshot import OneshotResult, oneshot
    from loraprune.recipes.prune import PruneResult, prune
    from loraprune.recipes.recover import recover
    from loraprune.recipes.verify import verify
    from loraprune.record.claims import OutputInUseError
    from loraprune.record.places import OutputExistsError, WriteError
    from loraprune.report.comparison.compare import compare_runs
    from loraprune.report.comparison.result import RunsComparison
    from loraprune.sparsity.masked_lora import keep_zeros_
    from loraprune.structure.describe import describe
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan
    from loraprune.surgery.cut import cut_
    from loraprune.tasks.options import LoraOptions, RunOptions
    from loraprune.tasks.registry import TaskError

__all__ = [
    "BadResultError",
    "BenchConfig",
    "BenchFileError",
    "BenchResult",
    "CheckpointError",
    "ComparisonConfig",
    "CriteriaComparison",
    "DescriptionError",
    "Estimate",
    "EstimateConfig",
    "EvaluationConfig",
    "InterruptedRunError",
    "LoadBackError",
    "LoraOptions",
    "NonFiniteWeightsError",
    "OneshotConfig",
    "OneshotResult",
    "OutputExistsError",
    "OutputInUseError",
    "Plan",
    "PruneResult",
    "Pruner",
    "PruningCallback",
    "PruningConfig",
    "PstCallback",
    "ResultsError",
    "RunOptions",
    "RunsComparison",
    "RuntimeFormatError",
    "Schedule",
    "SparseConfig",
    "Structure",
    "Target",
    "TaskError",
    "TrainingDivergedError",
    "UnsupportedArchitectureError",
    "UnsupportedQuantizationError",
    "WriteError",
    "__version__",
    "bench",
    "compare_criteria",
    "compare_runs",
    "cut_",
    "describe",
    "estimate",
    "evaluate",
    "keep_zeros_",
    "load",
    "load_semi_structured",
    "oneshot",
    "plan_for",
    "prune",
    "read_bench",
    "recover",
    "save",
    "save_pruned",
    "verify",
]

_HOMES = {
    "BenchConfig": "loraprune.measure.benchmark.config",
    "BenchFileError": "loraprune.measure.benchmark.result",
    "BenchResult": "loraprune.measure.benchmark.result",
    "CheckpointError": "loraprune.checkpoint.load",
    "ComparisonConfig": "loraprune.recipes.comparison_config",
    "CriteriaComparison": "loraprune.recipes.compare_criteria",
    "DescriptionError": "loraprune.architectures.values",
    "Estimate": "loraprune.measure.estimation.result",
    "EstimateConfig": "loraprune.measure.estimation.config",
    "EvaluationConfig": "loraprune.measure.evaluation.config",
    "InterruptedRunError": "loraprune.pruning.errors",
    "LoraOptions": "loraprune.tasks.options",
    "OneshotConfig": "loraprune.pruning.oneshot_config",
    "OneshotResult": "loraprune.recipes.oneshot",
    "LoadBackError": "loraprune.checkpoint.load_back",
    "NonFiniteWeightsError": "loraprune.checkpoint.finite",
    "OutputExistsError": "loraprune.record.places",
    "OutputInUseError": "loraprune.record.claims",
    "Plan": "loraprune.structure.plan",
    "PruneResult": "loraprune.recipes.prune",
    "Pruner": "loraprune.pruning.pruner",
    "PruningCallback": "loraprune.pruning.callback",
    "PruningConfig": "loraprune.pruning.config",
    "PstCallback": "loraprune.pruning.callback",
    "ResultsError": "loraprune.measure.evaluation.results",
    "RunOptions": "loraprune.tasks.options",
    "RunsComparison": "loraprune.report.comparison.result",
    "RuntimeFormatError": "loraprune.checkpoint.exports.checkpoint",
    "Schedule": "loraprune.allocation.schedule",
    "SparseConfig": "loraprune.pruning.oneshot_config",
    "Structure": "loraprune.structure.dimensions",
    "Target": "loraprune.allocation.target",
    "TaskError": "loraprune.tasks.registry",
    "TrainingDivergedError": "loraprune.pruning.errors",
    "BadResultError": "loraprune.pruning.errors",
    "UnsupportedArchitectureError": "loraprune.architectures",
    "UnsupportedQuantizationError": "loraprune.layers.quantized.layout",
    "WriteError": "loraprune.record.places",
    "bench": "loraprune.measure.benchmark.bench",
    "compare_criteria": "loraprune.recipes.compare_criteria",
    "compare_runs": "loraprune.report.comparison.compare",
    "cut_": "loraprune.surgery.cut",
    "describe": "loraprune.structure.describe",
    "estimate": "loraprune.measure.estimation.estimate",
    "evaluate": "loraprune.measure.evaluation.evaluate",
    "keep_zeros_": "loraprune.sparsity.masked_lora",
    "load": "loraprune.checkpoint.open",
    "load_semi_structured": "loraprune.checkpoint.exports.semi_structured",
    "oneshot": "loraprune.recipes.oneshot",
    "plan_for": "loraprune.allocation.allocate",
    "prune": "loraprune.recipes.prune",
    "read_bench": "loraprune.measure.benchmark.result",
    "recover": "loraprune.recipes.recover",
    "save": "loraprune.checkpoint.save",
    "save_pruned": "loraprune.checkpoint.save",
    "verify": "loraprune.recipes.verify",
}


register_with_transformers()
find_moved_modules()


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import loraprune`` and ``--help`` stay instant."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
