"""Folding, tables, the drawn graph and the figure."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from drawing import encoder_decoder, two_blocks
from otfuse.core.fold import fold
from otfuse.core.graph import FlowGraph, NodeKind
from otfuse.demo import figure
from otfuse.report import svg, table
from otfuse.report.layout import lay

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"], ["layers.{0..2}.mlp"]),
        (["a.0.b.1", "a.1.b.1"], ["a.{0..1}.b.1"]),
        (["a.0", "a.2", "a.4"], ["a.{0,2,4}"]),
        ([f"a.{i}" for i in range(0, 20, 2)], ["a.{0,2,..,18}"]),
        (["a.0", "b.0"], ["a.0", "b.0"]),
        (["q2.0", "q2.1", "rest"], ["q2.{0..1}", "rest"]),
    ],
)
def test_names_fold_where_only_their_numbers_differ(names, folded):
    rows = fold(names, lambda n: n, lambda _: None)
    assert [row.name for row in rows] == folded
    assert sorted(i for row in rows for i in row.indices) == list(range(len(names)))


def test_rows_that_are_not_alike_stay_apart():
    rows = fold([("a.0", 4), ("a.1", 5), ("a.2", 4)], lambda r: r[0], lambda r: r[1])
    assert [(row.name, row.count) for row in rows] == [("a.{0,2}", 2), ("a.1", 1)]


@pytest.mark.parametrize(
    "name", ["a", "x" * 80, "encoder.block.{0..11}.layer.0.SelfAttention.relative.q", "a..b", "m." * 30 + "end"]
)
def test_a_shortened_name_fits_and_keeps_its_ends(name):
    short = table.fit(name, 33)
    assert len(short) <= 33
    assert short[0] == name[0]
    assert short[-1] == name[-1]
    assert short == name or "\u2026" in short


def test_counts_of_blocks_survive_shortening():
    assert "{0..11}" in table.fit("encoder.block.{0..11}.layer.0.SelfAttention.q", 33)


@pytest.mark.parametrize("graph", [two_blocks(12), encoder_decoder()], ids=["encoder", "encoder-decoder"])
def test_the_table_fits_80_columns(graph):
    console = Console(width=80, record=True)
    console.print(*table.inspected(graph, None), sep="\n")
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any("permutation" in line for line in lines)
    assert len(lines) < 25


def test_placing_puts_every_node_on_a_spot_of_its_own():
    for graph in (two_blocks(), encoder_decoder()):
        layout = lay(graph)
        assert set(layout.place) == {n.index for n in graph.nodes}
        assert len(set(layout.place.values())) == len(graph.nodes)


def test_the_forward_pass_goes_upwards_within_a_column():
    for graph in (two_blocks(), encoder_decoder()):
        place = lay(graph).place
        for node in graph.nodes:
            for reading in node.readings:
                (c1, _, r1), (c2, _, r2) = place[reading.node], place[node.index]
                assert c1 != c2 or r1 < r2


def test_residual_lines_are_straight_and_decoders_have_a_column():
    graph = encoder_decoder()
    layout = lay(graph)
    assert len(layout.columns) == 2
    for column in layout.columns:
        assert {layout.place[i][1] for i in column.spine} == {0.0}
        assert all(graph.nodes[b].readings[0].node == a for a, b in pairwise(column.spine))
    junctions = [n for n in graph.nodes if n.kind is NodeKind.JUNCTION]
    assert sum(n.index in column.spine for column in layout.columns for n in junctions) == len(junctions) == 10


@pytest.mark.parametrize("make", [two_blocks, encoder_decoder])
def test_the_picture_holds_blocks_lines_junctions_and_spaces(make):
    graph = make()
    root = ET.fromstring(svg.draw(graph))
    texts = [t.text or "".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    titles = "\n".join(t.text or "" for t in root.iter(f"{SVG}title"))
    frames = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "block"]
    circles = list(root.iter(f"{SVG}circle"))
    spines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "spine"]
    junctions = sum(n.kind is NodeKind.JUNCTION for n in graph.nodes)
    assert len(frames) == (2 if make is two_blocks else 4)
    assert len(circles) == junctions + 1  # and one in the legend
    assert len(spines) == junctions + 1
    assert any("query-key 4 x 2" in text for text in texts)
    assert all(space.name in titles for space in graph.spaces)
    far = [p for p in root.iter(f"{SVG}path") if p.get("class") == "far"]
    assert len(far) == (0 if make is two_blocks else 4)  # key and value of each decoder block


def test_names_are_escaped():
    from dataclasses import replace

    graph = two_blocks()
    nodes = (replace(graph.nodes[0], name="<b>&"), *graph.nodes[1:])
    ET.fromstring(svg.draw(FlowGraph(graph.spaces, nodes, graph.shapes)))


def test_a_graph_without_junctions_is_drawn():
    graph = two_blocks(0)
    root = ET.fromstring(svg.draw(graph))
    assert len([p for p in root.iter(f"{SVG}path") if p.get("class") == "edge"]) == len(graph.nodes) - 1


def test_the_figure_is_written(tmp_path):
    rows = [
        {"method": "one", "kind": "parent", "one_shot": 0.97, "finetuned": 0.98},
        {"method": "both", "kind": "ensemble", "one_shot": 0.99, "finetuned": 0.99},
        {"method": "vanilla", "kind": "fused", "one_shot": 0.1, "finetuned": 0.95},
    ]
    figure.figure({"a pair": rows, "another": rows[:2]}, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0\u2026SelfAttention.q"),
        ("decoder.block.{0..1}.layer.1.EncDecAttention.q", "decoder\u2026{0..1}\u2026EncDecAttention.q"),
        ("decoder.block.{0..1}.layer.0.SelfAttention.q", "decoder.block.{0..1}\u2026SelfAttention.q"),
    ],
)
def test_a_shortened_name_keeps_what_tells_it_from_others(name, short):
    assert table.fit(name, 36) == short


def test_a_long_path_gives_way_to_the_figures():
    path = "/long/" + 20 * "folder/"
    console = Console(width=80, record=True)
    console.print(*table.evaluated([{"model": path, "examples": 1000, "loss": 1.5, "accuracy": 0.5}]), sep="\n")
    console.print(table.figures({"out": path, "loss": 0.25}))
    text = console.export_text()
    assert all(figure in text for figure in ("1,000", "1.5000", "50.00 %", "0.25"))
    assert "".join(text.split()).count("folder/") > 20, "nothing of the path is lost"
