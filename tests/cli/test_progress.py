"""What stderr tells of a stage that takes long: how much is done, and how long the rest will take."""

from __future__ import annotations

from otfuse.cli import output


def test_a_long_stage_tells_how_far_it_is(monkeypatch, capsys):
    seconds = iter([0.0, 30.0, 36.0, 37.0, 42.0, 50.0])  # of a clock at each call; 30 s of preparing are no rate
    monkeypatch.setattr(output.time, "monotonic", lambda: next(seconds))
    with output.reporting(quiet=False, verbose=False) as progress:
        for done in range(6):
            progress("align", done, 5)
    assert capsys.readouterr().err.splitlines() == [
        "otfuse: align",
        "otfuse: align: 2 of 5 done, about 18 s left",
        "otfuse: align: 4 of 5 done, about 4 s left",
    ]


def test_a_stage_begun_again_counts_its_time_anew(monkeypatch, capsys):
    seconds = iter([0.0, 10.0, 20.0, 500.0, 510.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(seconds))
    with output.reporting(quiet=False, verbose=False) as progress:
        for done in (1, 2, 3, 1, 2):  # one source after another
            progress("align", done, 12)
    assert capsys.readouterr().err.splitlines()[-1] == "otfuse: align: 2 of 12 done, about 2 min left"


def test_a_short_stage_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(output.time, "monotonic", lambda: 3.0)
    with output.reporting(quiet=False, verbose=False) as progress:
        for done in range(4):
            progress("align", done, 3)
    assert capsys.readouterr().err == "otfuse: align\n"


def test_minutes_where_there_are_many_seconds():
    assert output.left(60, 1, 10) == "about 10 min"
