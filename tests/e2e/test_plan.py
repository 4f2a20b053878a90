"""`--dry-run`: what a run is expected to cost, and the refusal where it would not fit."""

import json

import numpy as np
import pytest

import tiny
from otfuse.align import plan as plans
from otfuse.fusion.job import Job
from otfuse.measure import room
from otfuse.measure.rates import Rates, rates

RATES = Rates(1e10, 5e9, 5e9, 1e9, 3e7)
RECIPES = ("vanilla", "otfusion-wts", "otfusion-acts")


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    monkeypatch.setattr("otfuse.fusion.job.rates", lambda: RATES)


@pytest.mark.parametrize("name", RECIPES)
def test_memory_and_time_are_told(otfuse, models, data, monkeypatch, name):
    line = ["fuse", models / "llama0", models / "llama1", "--dry-run", "--recipe", name]
    line += ["--data", data / "ids.npz"] if name.endswith("acts") else []
    if name == "vanilla":
        monkeypatch.setattr(Job, "pairs", None)  # nothing is traced
    plan = json.loads(otfuse(*line, "--json").out)
    assert plan["memory_mib"] > 0
    assert plan["seconds"] > 0
    assert bool(plan["problems"]) is (name != "vanilla")
    assert "MiB above what importing takes" in otfuse(*line).out


def test_larger_models_more_examples_and_the_gate_cost_more(otfuse, models, tmp_path):
    for seed in (0, 1):
        tiny.save(tiny.build("vit", seed, hidden=64, mlp=512), tmp_path / f"large{seed}")
    for count, name in ((8, "few"), (64, "many")):
        images = np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", pixel_values=images)
    small, large = [[models / f"vit{i}" for i in (0, 1)], [tmp_path / f"large{i}" for i in (0, 1)]]

    def cost(pair, *options):
        plan = json.loads(otfuse("fuse", *pair, "--dry-run", "--json", *options).out)
        return plan["memory_mib"], plan["seconds"]

    acts = ("--recipe", "otfusion-acts", "--data")
    assert all(a < b for a, b in zip(cost(small), cost(large), strict=True))
    assert cost(small, "--no-verify")[1] < cost(small)[1]
    few, many = cost(small, *acts, tmp_path / "few.npz"), cost(small, *acts, tmp_path / "many.npz")
    assert few[1] < many[1]
    assert cost(small, *acts, tmp_path / "many.npz", "--batch-size", "2")[0] <= many[0]


@pytest.mark.parametrize("name", ["vanilla", "otfusion-wts"])
def test_what_does_not_fit_is_refused_before_any_work(otfuse, models, tmp_path, monkeypatch, name):
    monkeypatch.setattr(room, "free_mib", lambda: 3.0)
    ran = otfuse("fuse", models / "llama0", models / "llama1", "--out", tmp_path / "out", "--recipe", name, "-q")
    assert ran.status == 1
    assert "MiB are free; what helps:" in ran.err
    assert ran.err.count("\n") == 1
    assert ("--recipe vanilla, --no-verify" in ran.err) is (name != "vanilla")
    assert list(tmp_path.iterdir()) == []


def test_values_that_share_memory_count_once():
    import torch
    from torch import nn

    from named import Named
    from otfuse.program.export import export

    model = Named(lambda m, x: m.b(m.a(x).view(6, 8).t().t().relu()), {"a": nn.Linear(4, 8), "b": nn.Linear(8, 2)})
    program = export(model.eval(), (torch.ones(6, 4),))
    assert plans.activations(program, set()) == 4 * 6 * (8 + 8)
    first = next(node.name for node in program.graph.nodes if node.op == "call_function")
    assert plans.activations(program, {first}) == 4 * 6 * 8


def test_the_rates_of_this_machine_are_numbers_above_zero():
    found = rates()
    assert all(value > 0 for value in (found.single, found.double, found.memory, found.python))
