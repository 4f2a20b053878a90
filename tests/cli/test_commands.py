"""Each command: what it hands to the pipeline and what it prints."""

from __future__ import annotations

import inspect
import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
import yaml
from rich.console import Console

from behind import STANDS
from drawing import two_blocks
from otfuse.core.alignment import SpaceReport
from otfuse.core.recipe import Recipe, read
from otfuse.core.report import Report, SourceInfo, Stage
from otfuse.errors import CheckpointError
from otfuse.report import table


def found(**_):
    return SimpleNamespace(graph=two_blocks(), verification=SimpleNamespace(error=3e-16, control=0.25))


def report():
    solved = tuple(
        SpaceReport(f"layers.{i}.mlp", "emd", (16, 16), 0.5, 0.1 + i, converged=i != 3, marginal_error=0.0, steps=0)
        for i in range(4)
    )
    return Report(
        read("otfusion-wts"), (Stage("read", 0.25, 100.0), Stage("solve", 1.5, 120.0)), solved,
        (SourceInfo("a", "00"), SourceInfo("b", "11")), {"error": 1e-7}, ("a note",),
    )  # fmt: skip


def test_what_was_solved_for_several_sources_is_told_apart():
    one = report().solved
    both = replace(report(), solved=tuple(replace(s, source=name) for name in ("b", "c") for s in one))
    text = shown(table.fused(both.to_dict()))
    assert [line.split()[1] for line in text.splitlines() if line.startswith("layers")] == ["1", "2"]
    assert "source" not in shown(table.fused(report().to_dict()))


def shown(parts):
    console = Console(width=100, file=io.StringIO())
    console.print(*parts)
    return console.file.getvalue()


def test_inspect_json_has_the_form_of_the_contract(otfuse, pipeline):
    pipeline(inspect=lambda model, **_: found())
    ran = otfuse("inspect", "model", "--verify", "--json")
    answer = json.loads(ran.out)
    assert ran.status == 0
    assert list(answer) == ["parameters", "spaces", "verify"]
    assert answer["parameters"] == 72
    assert list(answer["spaces"][0]) == ["id", "name", "kind", "size", "copies", "group", "pinned", "members", "exact"]
    assert answer["spaces"][0]["members"] == [{"tensor": "stream.weight", "axis": 0, "role": "produces"}]
    assert answer["verify"] == {"error": 3e-16, "control": 0.25}


def test_inspect_without_verify_says_null(otfuse, pipeline):
    asked = {}
    pipeline(inspect=lambda model, **more: asked.update(more) or SimpleNamespace(graph=two_blocks(), verification=None))
    assert json.loads(otfuse("inspect", "model", "--json").out)["verify"] is None
    assert {k: v for k, v in asked.items() if k != "progress"} == {
        "verify": False, "seed": 0, "allow_pickle": False, "trust_remote_code": False,
    }  # fmt: skip


def test_inspect_folds_blocks_and_draws(otfuse, pipeline, tmp_path):
    pipeline(inspect=lambda model, **_: found())
    ran = otfuse("inspect", "model", "--verify", "--svg", tmp_path / "graph.svg")
    assert "layers.{0..1}.mlp.up" in ran.out
    assert "3.0e-16" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100
    ET.parse(tmp_path / "graph.svg")


def test_inspect_refuses_a_place_for_the_picture(otfuse, pipeline, tmp_path):
    pipeline(inspect=lambda model, **_: found())
    ran = otfuse("inspect", "model", "--svg", tmp_path / "missing" / "graph.svg")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "cannot be written" in ran.err


def test_fuse_hands_everything_over(otfuse, pipeline, tmp_path):
    asked = {}

    def fuse(anchor, sources, out, **more):
        asked.update(more, anchor=anchor, sources=sources, out=out)
        return SimpleNamespace(report=report(), plan=None, out=out)

    pipeline(fuse_checkpoints=fuse)
    ran = otfuse(
        "fuse", "a", "b", "c", "--out", tmp_path / "f", "--set", "otfusion.solver=emd", "--set", "weights=[0.5, 0.25, 0.25]",
        "--seed", "7", "--data", "d.npz", "--device", "cpu", "--no-verify", "--dtype", "float16", "--out-shard-size", "5GB",
        "--allow-pickle", "--trust-remote-code", "--batch-size", "4", "--json",
    )  # fmt: skip
    recipe = asked.pop("recipe")
    assert (recipe.otfusion.solver, recipe.weights, recipe.seed) == ("emd", (0.5, 0.25, 0.25), 7)
    del asked["progress"]
    assert asked == {
        "anchor": "a", "sources": ["b", "c"], "out": tmp_path / "f", "data": "d.npz", "device": "cpu", "verify": False,
        "dtype": "float16", "shard_size": "5GB", "allow_pickle": True, "trust_remote_code": True, "batch_size": 4,
    }  # fmt: skip
    answer = json.loads(ran.out)
    assert answer["out"] == str(tmp_path / "f")
    assert [stage["name"] for stage in answer["stages"]] == ["read", "solve"]


def test_fuse_prints_stages_and_folded_problems(otfuse, pipeline, tmp_path):
    pipeline(fuse_checkpoints=lambda anchor, sources, out, **_: SimpleNamespace(report=report(), plan=None, out=out))
    ran = otfuse("fuse", "a", "b", "--out", tmp_path / "f")
    assert "layers.{0..3}.mlp" in ran.out
    assert "1 of 4 problems did not converge, first layers.3.mlp" in ran.out
    assert "1.75" in ran.out
    assert ran.err == f"otfuse: wrote {tmp_path / 'f'}\n"


def test_dry_run_needs_no_out_and_writes_nothing(otfuse, pipeline):
    plan = SimpleNamespace(
        problems=(("layers.0.mlp", 16, 32, "sinkhorn"),), memory_mib=12.0, seconds=3.5, spaces=(("s", "stream", 8, 8),)
    )

    def fuse(anchor, sources, out, **_):
        assert out is None
        return SimpleNamespace(report=None, plan=plan, out=None, names={"s": "stream"})

    pipeline(fuse_checkpoints=fuse)
    assert json.loads(otfuse("fuse", "a", "b", "--dry-run", "--json").out) == {
        "out": None,
        "spaces": [{"id": "s", "name": "stream", "kind": "stream", "anchor": 8, "source": 8}],
        "problems": [{"name": "layers.0.mlp", "anchor": 16, "source": 32, "method": "sinkhorn"}],
        "memory_mib": 12.0,
        "seconds": 3.5,
    }
    ran = otfuse("fuse", "a", "b", "--dry-run")
    assert "16 x 32" in ran.out
    assert "nothing was written" in ran.err


def test_eval_json_and_table(otfuse, pipeline):
    rows = [
        {"model": "a", "examples": 10, "loss": 0.5, "accuracy": 0.9},
        {"model": "ensemble", "examples": 10, "loss": float("nan"), "accuracy": 1.0},
    ]
    pipeline(evaluate_checkpoints=lambda models, data, **_: rows)
    answer = json.loads(otfuse("eval", "a", "b", "--data", "d.npz", "--ensemble", "--json").out)
    assert answer == {"models": [rows[0], rows[1] | {"loss": None}]}
    assert "90.00 %" in otfuse("eval", "a", "--data", "d.npz").out


def test_finetune_hands_over_only_what_was_given(otfuse, pipeline, tmp_path):
    asked = {}
    pipeline(
        finetune_checkpoint=lambda model, data, out, options, **more: (
            asked.update(options=options, **more) or {"loss": 0.1}
        )
    )
    ran = otfuse(
        "finetune", "m", "--data", "d", "--out", tmp_path / "o", "--steps", "5", "--learning-rate", "1e-3", "--json"
    )
    assert json.loads(ran.out) == {"loss": 0.1}
    del asked["progress"]
    assert asked == {
        "options": {"steps": 5, "learning_rate": 1e-3}, "restart": False, "allow_pickle": False, "trust_remote_code": False,
    }  # fmt: skip


def test_finetune_interrupted_says_how_to_go_on(otfuse, pipeline, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    pipeline(finetune_checkpoint=stop)
    ran = otfuse("finetune", "m", "--data", "d", "--out", tmp_path / "o")
    assert ran.status == 130
    assert ran.err == "otfuse: interrupted; give the same command again to go on from the last saved state\n"


def test_recipes_lists_and_shows(otfuse):
    assert "otfusion-wts\n" in otfuse("recipes").out
    shown = yaml.safe_load(otfuse("recipes", "otfusion-emd").out)
    assert (shown["scheme"], shown["otfusion"]["solver"]) == ("otfusion", "emd")
    assert set(shown) == set(Recipe.model_fields)
    assert "weights: null  # equal: 1/k each for k models\n" in otfuse("recipes", "vanilla").out
    plain = json.loads(otfuse("recipes", "vanilla", "--json").out)
    assert (plain["scheme"], plain["weights"]) == ("average", None)


def test_progress_is_plain_lines_once_per_stage_off_a_terminal(otfuse, pipeline):
    def slow(model, *, progress, **_):
        for done in range(3):
            progress("reading", done, 3)
        return found()

    pipeline(inspect=slow)
    assert otfuse("inspect", "m", "--json").err == "otfuse: reading\n"
    assert otfuse("inspect", "m", "--json", "--quiet").err == ""


def test_only_the_first_process_speaks(otfuse, pipeline, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    pipeline(inspect=lambda model, **_: found())
    ran = otfuse("inspect", "m", "--json")
    assert (ran.out, ran.err) == ("", "")


@pytest.mark.parametrize("name", STANDS)
def test_what_stands_behind_a_command_takes_what_the_commands_give(name):
    module = import_module(STANDS[name])
    keywords = {
        "inspect": {"verify", "seed", "progress", "allow_pickle", "trust_remote_code"},
        "fuse_checkpoints": {
            "recipe", "data", "device", "verify", "dtype", "shard_size", "allow_pickle", "trust_remote_code", "batch_size", "progress",
        },
        "evaluate_checkpoints": {"ensemble", "batch_size", "device", "allow_pickle", "trust_remote_code", "progress"},
        "finetune_checkpoint": {"progress", "restart", "allow_pickle", "trust_remote_code"},
    }  # fmt: skip
    assert keywords[name] <= set(inspect.signature(getattr(module, name)).parameters)


def test_unreadable_model_is_one_sentence(otfuse, pipeline, tmp_path):
    def refuse(model, **_):
        raise CheckpointError(f"{model}: no such folder; give a checkpoint")

    pipeline(inspect=refuse)
    ran = otfuse("inspect", Path("nowhere"))
    assert (ran.status, ran.out, ran.err) == (1, "", "otfuse: nowhere: no such folder; give a checkpoint\n")


def test_the_demo_prints_its_table_or_its_figures(otfuse, monkeypatch, tmp_path):
    found = {"rows": [{"method": "vanilla", "one_shot": 0.5}], "table": "| vanilla | 50.0 |\n"}
    monkeypatch.setattr("otfuse.demo.run.run", lambda folder, _progress: found if folder == tmp_path else None)
    shown = otfuse("demo", tmp_path, "--quiet")
    assert (shown.status, shown.out.strip()) == (0, "| vanilla | 50.0 |")
    assert json.loads(otfuse("demo", tmp_path, "--quiet", "--json").out) == found
