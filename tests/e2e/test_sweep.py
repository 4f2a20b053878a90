"""`otfuse sweep`: every point fused and scored once, whatever ended the run before; what recipes refuse is told beside the rest."""

from __future__ import annotations

import json
import signal
import time
from xml.etree import ElementTree as ET

import pytest

from forked import command, started
from otfuse.commands import study
from tiny import build, listing, save

GRID = ("--grid", "otfusion.residual=mean,skip,bogus", "--grid", "recipe=otfusion-wts,vanilla")


@pytest.fixture
def sweep(otfuse, models, data, tmp_path):
    def run(*given, out="out", source="vit1", on="labelled.npz"):
        return otfuse("sweep", models / "vit0", models / source, "--data", data / on, "--out", tmp_path / out, *given)

    return run


@pytest.fixture
def fusions(monkeypatch):
    """Calls of fuse, and the number of the one that is interrupted, in ``at``."""
    calls, true = [], study.fuse

    def fuse(models, recipe, *given, **named):
        calls.append(recipe)
        if len(calls) == fuse.at:
            raise KeyboardInterrupt
        return true(models, recipe, *given, **named)

    fuse.calls, fuse.at = calls, 0
    monkeypatch.setattr(study, "fuse", fuse)
    return fuse


def kept(folder):
    """results.jsonl without the seconds."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [line | {"result": line["result"] | {"seconds": None}} for line in lines]


def test_points_come_best_first_and_refused_ones_do_not_stop_the_others(sweep, otfuse, models, data, tmp_path):
    ran = sweep(*GRID, "--json")
    assert ran.status == 0, ran.err
    found, out = json.loads(ran.out), tmp_path / "out"
    assert found == json.loads((out / "results.json").read_text())
    assert listing(out) == ["figure.svg", "results.json", "results.jsonl"]
    assert ET.parse(out / "figure.svg").getroot().tag.endswith("svg")
    good, refused = [[r for r in found["rows"] if ("refused" in r) is bad] for bad in (False, True)]
    assert found["rows"] == [*good, *refused]
    assert [row["loss"] for row in good] == sorted(row["loss"] for row in good)
    assert [row["point"]["otfusion.residual"] for row in refused] == ["bogus", "bogus"]
    assert all("otfusion.residual cannot be 'bogus'" in row["refused"] for row in refused)
    assert len({tuple(row["point"].values()) for row in found["rows"]}) == 6
    best = dict(good[0]["point"])
    name = best.pop("recipe")
    made = ("--out", tmp_path / "best", "--recipe", name, *(f"--set={k}={v}" for k, v in best.items()), "-q")
    assert otfuse("fuse", models / "vit0", models / "vit1", *made).status == 0
    scored = (
        "eval",
        models / "vit0",
        models / "vit1",
        tmp_path / "best",
        "--data",
        data / "labelled.npz",
        "--json",
        "-q",
    )
    *parents, own = json.loads(otfuse(*scored).out)["models"]
    assert (found["parents"], own["loss"]) == (parents, pytest.approx(good[0]["loss"], rel=1e-5))
    shown = otfuse("report", out)
    assert (shown.status, shown.out) == (0, sweep(*GRID, "-q").out)
    assert "otfusion.residual recipe" in shown.out


def test_an_interrupted_sweep_goes_on_to_the_same_file(sweep, fusions, tmp_path):
    grid = ("--grid", "weights=[0.5, 0.5],[0.2, 0.8]", "--grid", "seed=0,1", "--recipe", "vanilla")
    fusions.at = 3
    ran = sweep(*grid)
    assert ran.status == 130
    assert ran.err.endswith(f"give the same command again to go on with what {tmp_path / 'out'} holds\n")
    assert listing(tmp_path / "out") == ["results.jsonl"]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    # half a line, as a kill while writing leaves it
    (tmp_path / "out" / "results.jsonl").write_bytes(before + before[:40])
    assert sweep(*grid).status == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(before)
    assert len(fusions.calls) == 3 + 2
    assert sweep(*grid, out="whole").status == 0
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "whole")]
    for found in results:
        found["rows"] = [row | {"seconds": None} for row in found["rows"]]
    assert results[0] == results[1]
    done = len(fusions.calls)
    more = json.loads(sweep("--grid", "weights=[0.2, 0.8],[0, 1]", "--recipe", "vanilla", "--json").out)
    assert len(fusions.calls) == done + 1, "a grid that overlaps does what is new alone"
    assert len(more["rows"]) == 2


def test_a_killed_sweep_goes_on_to_the_same_file(sweep, models, data, tmp_path):
    grid = ("--grid", f"seed={','.join(map(str, range(16)))}", "--recipe", "vanilla", "-q")
    given = (models / "vit0", models / "vit1", "--data", data / "labelled.npz", "--out", tmp_path / "cut", *grid)
    process, said = started(command, "sweep", *map(str, given))
    file = tmp_path / "cut" / "results.jsonl"
    with said:
        while not (file.exists() and file.stat().st_size) and process.is_alive():
            time.sleep(0.01)
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < len(file.read_bytes().splitlines()) < 16
    assert (sweep(*grid, out="cut").status, sweep(*grid, out="whole").status) == (0, 0)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


def test_a_folder_of_another_run_is_refused_before_anything_is_fused(sweep, fusions, tmp_path):
    one = ("--grid", "recipe=vanilla")
    assert sweep(*one).status == 0
    before = {path: (tmp_path / path).read_bytes() for path in listing(tmp_path) if (tmp_path / path).is_file()}
    for given, words in ((({"source": "vit2"}), "hashes differ"), ({"on": "images.npz"}, "have no labels")):
        ran = sweep(*one, "-q", **given)
        assert (ran.status, ran.err.count("\n"), words in ran.err) == (1, 1, True), ran.err
    assert {path: (tmp_path / path).read_bytes() for path in before} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "results.jsonl").write_text('{"mine": 1}\n')
    ran = sweep(*one, "-q", out="notes")
    assert (ran.status, "was not made by this command" in ran.err) == (1, True)
    (tmp_path / "notes" / "results.jsonl").rename(tmp_path / "notes" / "mine.txt")
    assert "not empty" in sweep(*one, "-q", out="notes").err
    assert len(fusions.calls) == 1


def test_if_no_point_can_be_fused_the_table_says_why_and_the_status_is_1(otfuse, models, data, tmp_path):
    wide = save(build("vit", 3, mlp=40), tmp_path / "wide")
    given = (
        "--data",
        data / "labelled.npz",
        "--out",
        tmp_path / "out",
        "--grid",
        "recipe=vanilla",
        "--grid",
        "seed=0,1",
        "-q",
    )
    ran = otfuse("sweep", models / "vit0", wide, *given)
    assert (ran.status, ran.err.splitlines()[-1].startswith("otfuse: no point of the grid could be fused")) == (1, True)
    assert ran.out.count("cannot be") or ran.out.count("shape")
    assert (tmp_path / "out" / "results.jsonl").read_text() == ""


BAD = {
    "unknown key": (1, "unknown key 'otfusion.solvr'; did you mean 'otfusion.solver'?", ("--grid", "otfusion.solvr=emd,sinkhorn")),
    "no value": (2, "write KEY=V1,V2", ("--grid", "otfusion.solver=")),
    "no key": (2, "write KEY=V1,V2", ("--grid", "emd,sinkhorn")),
    "not values": (2, "no values with commas", ("--grid", "otfusion.solver=emd,,x]")),
    "value twice": (2, "a value is given twice", ("--grid", "otfusion.solver=emd,emd")),
    "key twice": (2, "key seed is given twice", ("--grid", "seed=0", "--grid", "seed=1")),
    "no grid": (2, "--grid", ()),
    "two recipes": (2, "names recipes too", ("--grid", "recipe=vanilla", "--recipe", "otfusion-emd")),
    "recipe": (1, "no such recipe", ("--grid", "recipe=vanila")),
}  # fmt: skip


@pytest.mark.parametrize(("status", "words", "given"), BAD.values(), ids=BAD)
def test_a_bad_grid_is_one_sentence(sweep, tmp_path, status, words, given):
    ran = sweep(*given, "-q")
    assert (ran.status, ran.out, ran.err.count("\n"), listing(tmp_path)) == (status, "", 1, [])
    assert words in ran.err


def test_report_says_what_it_cannot_read(otfuse, tmp_path):
    for text, words in (
        (None, "no fusion.json and no results.json"),
        ("{", "is damaged"),
        ("[1]", "was not made by otfuse"),
    ):
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        ran = otfuse("report", tmp_path)
        assert (ran.status, ran.out, ran.err.count("\n"), words in ran.err) == (1, "", 1, True), ran.err
