"""What two threads give at the same moment is all there afterwards."""

from __future__ import annotations

import copy
from time import sleep

import torch
from torch import nn

import otfuse
from otfuse.fusion.into import IntoModule
from otfuse.fusion.plain import at_once


def test_a_module_that_two_threads_ask_for_is_made_once():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    into = IntoModule(model, None, lambda: sleep(0.2) or ())
    names = list(model.state_dict())
    for _ in at_once(lambda name: into(name, [torch.full((model.get_parameter(name).numel(),), 7.0)]), names):
        pass
    assert all((tensor == 7.0).all() for tensor in into.module.state_dict().values())


def test_the_plain_average_of_modules_holds_every_mean():
    one = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    for _ in range(10):
        fused = otfuse.fuse([one, other], recipe="vanilla").model.state_dict()
        assert all(torch.allclose(fused[name], tensor + 0.5, atol=1e-6) for name, tensor in one.state_dict().items())
