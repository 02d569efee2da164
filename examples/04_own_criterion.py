"""Write a criterion of your own, and compare it with two of the package: ``python 04_own_criterion.py``."""

import argparse
from pathlib import Path

import torch

import loraprune
from loraprune import OneshotConfig, RunOptions
from loraprune.data.demo import demo_data, demo_model


class OutputEnergy:
    """Score of a group: the energy that it adds to the output of the layer that reads it."""

    comparable = False  # heads and channels are not ranked against each other
    every_step = False  # read at cuts, after all calibration data

    def attach(self, model, structure):
        """Collect the squared inputs of every layer that reads groups."""
        self.model, self.structure, self.inputs, self.hooks = model, structure, {}, []
        for dimension in structure:
            layer = dimension.consumer.layer(model)
            self.hooks.append(layer.register_forward_pre_hook(self.listener(dimension.name)))

    def listener(self, name):
        """Return a hook that adds up squares over all tokens."""

        def listen(module, args):
            if not torch.is_grad_enabled():  # the model is evaluated or repaired
                return
            self.inputs[name] = self.inputs.get(name, 0) + args[0].detach().square().flatten(0, -2).sum(0)

        return listen

    def scores(self, plan):
        """Return one number for each group that the plan still keeps, by dimension; None without evidence."""
        if not self.inputs:
            return None
        found = {}
        for dimension in self.structure:
            consumer = dimension.consumer  # the layer that reads the groups, such as down_proj
            weight = consumer.weight(self.model)  # (out, in)
            energy = weight.square().sum(0) * self.inputs.pop(dimension.name)  # after a cut, the columns are others
            found[dimension.name] = consumer.group_sums(energy, plan.count(dimension.name))
        return found

    def detach(self):
        """Remove the hooks, and let the model go."""
        for hook in self.hooks:
            hook.remove()
        self.model = None


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=demo_model(), help="folder or name on the Hub (default: the bundled model)")
parser.add_argument("--data", help="calibration text (default: Python's standard library)")
parser.add_argument("--held-out", help="text to measure on (default: modules that the bundled model never saw)")
parser.add_argument("--ratio", type=float, default=0.3, help="ratio of the prunable parameters to remove")
options = parser.parse_args()

data, held_out = options.data, options.held_out  # with --data alone, some of its rows are held out
if data is None:
    data, held_out = map(str, demo_data(Path("demo-data")))

rows = []
for name, criterion in {"own": OutputEnergy(), "flap": "flap", "random": "random"}.items():
    config = OneshotConfig(
        ratio=options.ratio,
        criterion=criterion,
        allocation="uniform",  # the same widths for all, so that only the choice of groups differs
        repair="none",
        calibration_sequences=16,
        max_length=128,
    )
    measured = RunOptions(eval_data=held_out, eval_sequences=16, latency=False, allow_bad_result=True)
    rows.append((name, loraprune.oneshot(options.model, data, config, options=measured).metrics))

print(f"| {'criterion':9} | {'parameters':>12} | {'perplexity':>10} |\n|---|---:|---:|")
print(f"| {'(dense)':9} | {rows[0][1]['dense']['parameters']:12,} | {rows[0][1]['dense']['perplexity']:10.2f} |")
for name, metrics in rows:
    print(f"| {name:9} | {metrics['pruned']['parameters']:12,} | {metrics['pruned']['perplexity']:10.2f} |")
