"""What the demo says of its rows: for fusing, and against it."""

from __future__ import annotations

import pytest

from otfuse.demo import words


def row(method, kind, one_shot, finetuned, loss=0.5, **notes):
    losses = {"one_shot_loss": loss, "finetuned_loss": 0.4}
    return {"method": method, "kind": kind, "one_shot": one_shot, "finetuned": finetuned, **losses, **notes}


def rows(auto, published=0.3):
    return [
        row("a", "parent", 0.6, 0.7), row("b", "parent", 0.5, 0.8), row("ensemble", "ensemble", 0.9, 0.9, 0.2),
        row("otfusion-emd", "fused", published, 0.75), row("otfusion-wts", "fused", 0.2, 0.95, regulariser=0.05),
        row("auto", "fused", auto, 0.8, 0.3), row("a distilled", "control", 0.8, 0.85, 0.3),
    ]  # fmt: skip


def test_what_is_said_follows_from_the_rows_in_both_directions():
    low, between, high = (" ".join(words.remarks(rows(auto), 24)) for auto in (0.55, 0.7, 0.9))
    assert (
        "gets 55.0 % right (standard error 2.2): better than b (50.0); not better than a (60.0) and a distilled (80.0)"
        in low
    )
    assert "keep the better parent (a)" in low
    assert "does not reach the accuracy of the ensemble (90.0 %)" in low
    assert "fusing beats both parents, but the control a distilled does as well or better." in between
    assert "fusing pays" in high
    assert "It reaches the accuracy of the ensemble" in high
    for said in (low, between, high):
        assert sum(word in said for word in ("keep the better parent", "but the control", "fusing pays")) == 1
        assert "0.300: lower than a (0.500) and b (0.500); not lower than a distilled (0.300)." in said
        assert (
            "Finetuned, it gets 80.0 % right: better than a (70.0); not better than b (80.0) and a distilled (85.0)."
            in said
        )
        assert "Regulariser: 0.05 for otfusion-wts;" in said
    near = " ".join(words.remarks(rows(0.81), 24))
    assert "fusing pays" in near
    assert "less than one standard error" in near
    assert not any("less than one standard error" in said for said in (low, between, high))


@pytest.mark.parametrize(
    ("published", "where"),
    [
        (0.3, "below the weaker parent (50.0 %)"),
        (0.55, "between the parents"),
        (0.6, "not below the better parent (60.0 %)"),
    ],
)
def test_the_published_method_is_placed_beside_the_parents(published, where):
    said = [sentence for sentence in words.remarks(rows(0.7, published), 24) if "published method" in sentence]
    assert len(said) == 1
    assert f"(otfusion-emd) gets {100 * published:.1f} %" in said[0]
    assert where in said[0]
    assert "75.0 % finetuned" in said[0]


def test_the_table_has_a_row_for_each_method():
    lines = words.table(
        [row("vanilla", "fused", 0.2, 0.9, 1.0, seconds=0.26), row("a", "parent", 0.5, 0.6)]
    ).splitlines()
    assert lines[2:] == ["| vanilla | 20.0 | 1.000 | 0.3 | 90.0 | 0.400 |", "| a | 50.0 | 0.500 |  | 60.0 | 0.400 |"]
