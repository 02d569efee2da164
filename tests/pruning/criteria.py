"""Criteria of pruning without training by what they look at, and a run of it in one call."""

from __future__ import annotations

from types import SimpleNamespace

from loraprune.allocation.target import Target
from loraprune.importance.configs import AtConsumers, Osscar
from loraprune.importance.criterion_config import CriterionConfig
from loraprune.pruning.groups import Groups
from loraprune.pruning.oneshot import prune_
from loraprune.pruning.oneshot_config import ONESHOT_CRITERIA
from loraprune.surgery.repairs import repair_of

STRUCTURED_METHODS = tuple(ONESHOT_CRITERIA)
CONSUMER_METHODS = tuple(name for name, kind in ONESHOT_CRITERIA.items() if issubclass(kind, AtConsumers))
GRADIENT_METHODS = tuple(name for name, kind in ONESHOT_CRITERIA.items() if kind.reads_gradients)
WEIGHT_METHODS = tuple(name for name, kind in ONESHOT_CRITERIA.items() if not kind.reads_data)


def criterion_of(method: str, damping: float = 0.01) -> CriterionConfig:
    return Osscar(damping) if method == "osscar" else ONESHOT_CRITERIA[method]()


def pruned_without_training(model, structure, method, calibration, *, target, repair, damping=0.01, **options):
    """Prune a model in place; gives plan, importance and, by cut, the errors of the consumers."""
    groups = Groups.all_of(structure, target, criterion_of(method, damping))
    cuts = prune_(model, groups, calibration, repair=repair_of(repair, damping), **options)
    return SimpleNamespace(
        plan=groups.plan, importance=groups.importance, errors=tuple(cut.errors for cut in cuts), cuts=cuts
    )


def all_groups(structure, method, damping=0.01, plan=None) -> Groups:
    groups = Groups.all_of(structure, Target(), criterion_of(method, damping))
    groups.plan = plan or groups.plan
    return groups
