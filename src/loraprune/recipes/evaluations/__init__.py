"""What a model can be evaluated on, each in the same form: checked first, then measured."""

from loraprune.recipes.evaluations.evaluation import Evaluation
from loraprune.recipes.evaluations.planning import plan_evaluations

__all__ = ["Evaluation", "plan_evaluations"]
