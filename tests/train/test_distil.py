from __future__ import annotations

import copy
import signal

import numpy as np
import pytest
import torch
from torch import nn

import small_distil as small
from forked import statuses
from otfuse.errors import OtfuseError
from otfuse.train.distil import Distilled
from otfuse.train.finetune import batch_rows
from otfuse.train.progress import Progress


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def parts():
    return small.parts()


@pytest.fixture(scope="module")
def whole(parts) -> Distilled:
    """An uninterrupted run whose learning rate is chosen."""
    return small.run(parts, course=small.course(learning_rate=None))


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path, parts, whole):
    for kill, number, done in (("step", 5, 4), ("save", 4, 4)):  # the first save is the plan, the fourth is never whole
        out, weights = tmp_path / kill, tmp_path / f"{kill}.pt"
        assert statuses(small.main, out, weights, kill, number) == [-signal.SIGKILL]
        assert not weights.exists()
        again = small.run(parts, progress=Progress.beside(out), run={"one": 1}, course=small.course(learning_rate=None))
        assert again.resumed_from == done
        assert (again.learning_rate, again.best, again.rates) == (whole.learning_rate, whole.best, whole.rates)
        same(again.weights, whole.weights)
        with pytest.raises(OtfuseError, match=r"another run \(one differ\); delete the folder or pass --restart"):
            small.run(parts, progress=Progress.beside(out), run={"one": 2})
        Progress.beside(out).remove()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_distil_as_one(tmp_path, whole):
    assert statuses(small.main, tmp_path / "out", tmp_path / "two.pt", processes=2) == [0, 0]
    two = torch.load(tmp_path / "two.pt")
    assert (two.pop("processes"), two.pop("rate"), two.pop("best")) == (2, whole.learning_rate, whole.best)
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_one_step_is_that_of_torch(parts):
    course = small.course(steps=1, batch_size=len(parts.learned), learning_rate=0.03)
    made = small.run(parts, course=course)
    own = copy.deepcopy(parts.model).eval()
    own.load_state_dict(parts.weights)
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.03, betas=(0.9, 0.98), weight_decay=0.0)
    rows, _ = batch_rows(0, len(parts.learned), course.options(1, 0.03))
    rows = parts.learned[rows]
    ids, places = torch.from_numpy(parts.data.inputs["input_ids"][rows]), torch.from_numpy(parts.places[rows])
    with torch.no_grad():
        teachers = [torch.func.functional_call(own, dict(s.weights), (ids,)).softmax(-1) for s in parts.sides]
    wanted = (sum(teachers) / 2)[places]
    nn.functional.kl_div(own(ids)[places].log_softmax(-1), wanted, reduction="batchmean").backward()
    nn.utils.clip_grad_norm_(own.parameters(), 1.0)
    optimizer.step()
    assert made.best == 1
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(made.weights[name], tensor, atol=2e-4, rtol=0)  # targets are kept in half precision
    assert (own.head.weight - parts.weights["head.weight"]).abs().max() > 0.02


def test_it_learns_and_the_same_seed_gives_the_same(parts, whole):
    assert whole.after < 0.7 * whole.before
    assert 0 < whole.best <= whole.steps == small.STEPS
    near = 1.25 * min(whole.rates.values())
    assert whole.learning_rate == max(rate for rate, figure in whole.rates.items() if figure <= near)
    again = small.run(parts, course=small.course(learning_rate=None))
    same(again.weights, whole.weights)
    other = small.run(parts, course=small.course(learning_rate=whole.learning_rate, seed=5))
    assert not torch.equal(other.weights["head.weight"], whole.weights["head.weight"])


@pytest.mark.parametrize(
    ("trials", "taken"),
    [
        (
            {1e-4: 0.0327, 1e-5: 0.0284, 1e-6: 0.0270},
            1e-4,
        ),  # none gains on 0.0269: a longer run may, at a rate that trains
        ({1e-2: 0.49, 3e-3: 0.37, 1e-3: 0.43}, 3e-3),
        ({1e-2: np.inf, 1e-3: np.inf}, 1e-3),
        ({1e-2: 1e-9, 1e-3: -2e-9, 1e-4: -2e-9}, 1e-3),  # rounding where nothing is left to learn
    ],
)
def test_the_largest_rate_near_the_best_trial_is_taken(monkeypatch, parts, trials, taken):
    monkeypatch.setattr("otfuse.train.distil.searched", lambda *_: (min(trials, key=trials.get), trials))
    assert small.run(parts, course=small.course(learning_rate=None, steps=1)).learning_rate == taken


def test_what_gets_worse_gives_the_start_back(parts):
    made = small.run(parts, course=small.course(learning_rate=30.0))
    assert (made.best, made.after) == (0, made.before)
    same(made.weights, parts.weights)


def test_a_start_that_is_not_finite_is_one_sentence(tmp_path, parts):
    broken = {**parts.weights, "head.bias": torch.full_like(parts.weights["head.bias"], torch.nan)}
    with pytest.raises(OtfuseError, match="is not finite; take another start"):
        small.run(parts, weights=broken, progress=Progress.beside(tmp_path / "out"), run={})
    assert list(tmp_path.iterdir()) == []


def test_steps_are_fixed_once_from_the_seconds_that_are_left(parts, tmp_path):
    assert small.run(parts, course=small.course(steps=None, seconds=1e-6)).steps == 0
    progress, stopped = Progress.beside(tmp_path / "out"), []

    def stop(step, steps, _loss):
        stopped.append(steps)
        raise KeyboardInterrupt

    timed = small.course(steps=None, seconds=2.0)
    with pytest.raises(KeyboardInterrupt):
        small.run(parts, course=timed, progress=progress, run={}, on_step=stop)
    again = small.run(parts, course=small.course(steps=None, seconds=1e-6), progress=progress, run={})
    assert again.steps == stopped[0] > 0, "the clock of the first run decides"
    assert small.run(parts, course=small.course(steps=again.steps)).best == again.best


def test_batches_count_what_counts(parts):
    batch = parts.lesson.batch(np.array([3, 0, 20]))
    assert batch.count == parts.places[[3, 0, 20]].sum()
    assert (batch.examples, batch.take(slice(1, 2)).count) == (3, parts.places[0].sum())
