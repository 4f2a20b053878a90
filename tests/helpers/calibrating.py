"""Models of one example in float64, as calibrating takes them."""

import torch

from otfuse.core.dataset import Dataset
from otfuse.flow.derive import derive
from otfuse.measure.probe import Side
from otfuse.program.export import export
from otfuse.program.run import Runner
from otfuse.testing.examples import example


class Case:
    """Models of one example in float64, by seed, and inputs like the example's."""

    def __init__(self, name, module=None, inputs=None):
        self.entry = example(name)
        built, given = self.entry.build()
        self.module = (module or built).double()
        given = inputs or given
        self.given = given if isinstance(given, dict) else {f"x{i}": v for i, v in enumerate(given)}
        self.given = {n: v.double() if v.is_floating_point() else v for n, v in self.given.items()}
        traced = self.given if isinstance(given, dict) else tuple(self.given.values())
        self.program = export(self.module, traced)
        self.graph = derive(self.program)

    def weights(self, seed):
        module = self.entry.build(seed)[0].double()
        return {n: t.detach().clone() for n, t in module.state_dict().items() if n in self.program.ties}

    def side(self, weights):
        return Side(self.program, self.graph, weights)

    def data(self, batches, seed=0):
        chance = torch.Generator().manual_seed(seed)

        def like(value):
            shape = (batches * len(value), *value.shape[1:])
            if value.is_floating_point():
                return torch.randn(shape, generator=chance, dtype=value.dtype)
            if value.max() < 2:  # a mask
                return value.repeat(batches, *[1] * (value.ndim - 1))
            return torch.randint(4, int(value.max()) + 1, shape, generator=chance)

        return Dataset({name: like(value).numpy() for name, value in self.given.items()})

    def outputs(self, weights, data):
        tensors = {n: torch.from_numpy(a) for n, a in data.inputs.items()}
        whole = {n: weights[first] for n, first in self.program.ties.items()}
        return Runner(self.program)(whole, tensors if self.entry.from_config else tuple(tensors.values()))[0]


def firsts(case, weights):
    return {first: weights[first] for first in case.program.ties.values()}
