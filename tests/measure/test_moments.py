"""Streaming moments against the stored computation they replace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otfuse.errors import DataError
from otfuse.measure import moments as moments_module
from otfuse.measure.moments import AbsoluteMean, Affine, Moments, PairMoments
from otfuse.solve.cost import between

TRANSFORMS = ("standardize", "center", "normalize", "none")
COSTS = ("euclidean", "sqeuclidean", "cosine", "correlation")
SEEDS = st.integers(0, 2**32 - 1)


def transformed(values: torch.Tensor, how: str) -> torch.Tensor:
    """The published transforms on stored observations ``[rows, units]``."""
    v = values.double()
    if how == "standardize":
        return (v - v.mean(0)) / (v.std(0) + 1e-9)
    if how == "center":
        return v - v.mean(0)
    return v / v.norm(dim=0).clamp(min=1e-12) if how == "normalize" else v


def observations(rows: int, na: int, ns: int, seed: int, mean: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated float32 values of both models, deviations about 1 around means of size ``mean``."""
    g = torch.Generator().manual_seed(seed)
    latent = torch.randn(rows, 3, generator=g)
    out = []
    for n in (na, ns):
        noise, offset = torch.randn(rows, n, generator=g), mean * torch.randn(1, n, generator=g)
        out.append(latent @ torch.randn(3, n, generator=g) / 2 + noise + offset)
    return out[0], out[1]


def stream(anchor: torch.Tensor, source: torch.Tensor, sizes: list[int]) -> Moments:
    pair, start = PairMoments(anchor.shape[1], source.shape[1]), 0
    for size in [*sizes, len(anchor)]:
        pair.add(anchor[start : start + size], source[start : start + size])
        start += size
    return pair.result()


def assert_same_cost(found: torch.Tensor, stored: torch.Tensor, cost: str, size: float, within: float) -> None:
    """``within``: rounding of inner products relative to ``size``, the largest squared norm of a unit."""
    assert found.dtype == torch.float64
    assert found.shape == stored.shape
    if cost == "euclidean":  # a distance is known to the square root of its square's rounding where it is small
        found, stored = found.square(), stored.square()
    scale = size if "euclidean" in cost else 1.0
    assert (found - stored).abs().max().item() <= within * scale


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(
    rows=st.integers(2, 40), units=st.tuples(st.integers(1, 6), st.integers(1, 6)), seed=SEEDS,
    sizes=st.lists(st.integers(0, 15), max_size=6), mean=st.sampled_from([0.0, 1.0, 1e3]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_split_gives_what_storing_gives(
    transform: str, rows: int, units: tuple[int, int], seed: int, sizes: list[int], mean: float
) -> None:
    anchor, source = observations(rows, *units, seed, mean)
    found = stream(anchor, source, sizes)
    x, y = transformed(anchor, transform).T, transformed(source, transform).T
    size = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    for cost in COSTS:
        # Products in float64 around a nearby mean; the stored side cancels means of 1e3: 1e6 * 2^-53 * a few.
        assert_same_cost(found.distance(transform, cost), between(x, y, kind=cost), cost, size, 1e-8)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_float32_products_keep_float32_accuracy_with_ill_conditioned_means(
    transform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "_EXACT", 0)
    monkeypatch.setattr(moments_module, "_CHUNK", 700)
    anchor, source = observations(5000, 24, 17, 0, 1e3)
    found = stream(anchor, source, [1, 1300, 0, 37])
    x, y = transformed(anchor, transform).T, transformed(source, transform).T
    size = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    for cost in COSTS:
        # sums of up to 700 products in float32: 700 * 2^-24 = 4e-5 at worst, its root 1.6e-6 as rounding goes
        assert_same_cost(found.distance(transform, cost), between(x, y, kind=cost), cost, size, 5e-6)


def test_the_float32_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the shift, float32 products of means of 1e3 lose the deviations: the test above sees it."""
    monkeypatch.setattr(moments_module, "_EXACT", 0)
    anchor, source = observations(5000, 24, 17, 0, 1e3)
    x, y = transformed(anchor, "center").T, transformed(source, "center").T
    size = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    cross = (anchor.T @ source).double() - 5000 * anchor.double().mean(0)[:, None] * source.double().mean(0)
    naive = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * cross).clamp(min=0)
    with pytest.raises(AssertionError):
        assert_same_cost(naive, between(x, y, kind="sqeuclidean"), "sqeuclidean", size, 5e-6)


@given(rows=st.integers(2, 30), cut=st.integers(1, 29), seed=SEEDS, mean=st.sampled_from([0.0, 1e3]))
@settings(max_examples=40, deadline=None)
def test_parts_of_several_processes_add_up(rows: int, cut: int, seed: int, mean: float) -> None:
    rows = max(rows, cut + 1)
    anchor, source = observations(rows, 4, 3, seed, mean)
    whole = stream(anchor, source, [])
    parts = stream(anchor[:cut], source[:cut], []).stacked(stream(anchor[cut:], source[cut:], []))
    assert parts.rows == whole.rows
    for name in ("anchor_mean", "source_mean"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12, abs=1e-12)
    for name in ("anchor_square", "source_square", "cross"):  # deviations of size 1 around means known to 1e3 * 2^-53
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=rows * 1e-11)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("cost", COSTS)
def test_tied_is_keys_and_queries_transformed_each_and_stacked(transform: str, cost: str) -> None:
    """The order of the published code: every layer's activations are transformed, then keys and queries stacked."""
    keys, queries = observations(40, 6, 5, 0, 3.0), observations(25, 6, 5, 1, 0.5)
    found = stream(*keys, []).transformed(transform).stacked(stream(*queries, []).transformed(transform))
    x, y = (torch.cat([transformed(k, transform), transformed(q, transform)]).T for k, q in zip(keys, queries))  # noqa: B905
    size = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    assert_same_cost(found.distance("none", cost), between(x, y, kind=cost), cost, size, 1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_absolute_mean_after_transform(transform: str) -> None:
    first, second = observations(50, 6, 4, 0, 10.0), observations(50, 6, 4, 1, 2.0)
    parts = [stream(*values, [7]) for values in (first, second)]
    accumulator = AbsoluteMean([m.anchor_affine(transform) for m in parts])
    for rows in (slice(0, 13), slice(13, 50)):
        accumulator.add(first[0][rows], second[0][rows])
    stored = (transformed(first[0], transform) + transformed(second[0], transform)).abs().mean(0)
    assert accumulator.value == pytest.approx(stored, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.1, 0.5])
def test_a_constant_unit_is_its_rounding_error(dtype: torch.dtype, constant: float) -> None:
    """Its standardised value is the rounding of its float32 mean over that of its deviation, as published: one constant."""
    anchor, source = (v.to(dtype) for v in observations(30, 4, 4, 0))
    anchor[:, 1] = source[:, 2] = constant
    found = stream(anchor, source, [3, 8])
    assert found.anchor_square[1] == 0
    cost = found.distance("standardize", "correlation")
    assert cost[1].eq(1).all()
    assert cost[:, 2].eq(1).all()
    euclidean = found.distance("standardize", "euclidean")
    assert euclidean[1, 2] == 0
    single = torch.full((30, 4), constant)  # one half: sums of it are not rounded, so that nothing is left
    away = anchor[0, 1].double() - single[:, 0].double()[0] + (single[0] - single.mean(0)).double()[0]
    value = float(away / (single.std(0).double()[0] + 1e-9))
    assert (value == 0) == (constant == 0.5)
    # the norm of a standardised unit, of mean zero, and that of the constant, at right angles
    assert euclidean[1, 0].item() == pytest.approx((29 + 30 * value**2) ** 0.5)
    assert euclidean[0, 2].item() == pytest.approx((29 + 30 * value**2) ** 0.5)


def test_a_permuted_copy_is_nearest_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor, _ = observations(600, 40, 1, 0, 1e2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for exact, within in ((1 << 26, 1e-6), (0, 1e-3)):
        monkeypatch.setattr(moments_module, "_EXACT", exact)
        cost = stream(anchor, anchor[:, order], [200]).distance("standardize", "euclidean")
        assert cost.argmin(1).equal(order.argsort())
        assert cost[order, torch.arange(40)].max() <= within * cost.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "_EXACT", 0)
    anchor, source = (v.to(dtype) for v in observations(300, 5, 6, 0, 1.0))
    found = stream(anchor, source, [64]).distance("standardize", "sqeuclidean")
    stored = between(transformed(anchor, "standardize").T, transformed(source, "standardize").T, kind="sqeuclidean")
    assert_same_cost(found, stored, "sqeuclidean", 299, 1e-12 if dtype == torch.float64 else 1e-6)


def test_nothing_observed_is_kept() -> None:
    pair, g = PairMoments(8, 8), torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(3):
        pair.add(torch.randn(500, 8, generator=g), torch.randn(500, 8, generator=g))
        held = [v for value in vars(pair).values() for v in (value if isinstance(value, list) else [value])]
        sizes.append(sum(v.untyped_storage().nbytes() for v in held if isinstance(v, torch.Tensor)))
    assert sizes == [8 * (8 * 8 + 6 * 8)] * 3  # cross; shift, sum, square of both


def test_refusals_say_what_and_what_to_do() -> None:
    with pytest.raises(DataError, match="no row was observed"):
        PairMoments(2, 3).result()
    with pytest.raises(DataError, match=r"must be \[rows, 2\] and \[rows, 3\], got \[4, 2\] and \[5, 3\]; observe"):
        PairMoments(2, 3).add(torch.ones(4, 2), torch.ones(5, 3))
    one, broken = PairMoments(2, 3), PairMoments(2, 3)
    one.add(torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(DataError, match="one row has no deviation to standardise by"):
        one.result().distance("standardize", "euclidean")
    assert one.result().distance("center", "euclidean").eq(0).all()
    with pytest.raises(DataError, match="unknown transform 'whiten'; allowed: standardize"):
        one.result().distance("whiten", "euclidean")  # type: ignore[arg-type]
    broken.add(torch.ones(2, 2), torch.tensor([[0.0, 1, 2], [0, torch.inf, 2]]))
    with pytest.raises(DataError, match="unit 1 of the source takes values that are not finite; check"):
        broken.result()
    with pytest.raises(DataError, match=r"\[2, 3\] and \[3, 2\] units cannot be stacked"):
        one.result().stacked(stream(torch.ones(2, 3), torch.ones(2, 2), []))
    with pytest.raises(DataError, match="no row was observed"):
        _ = AbsoluteMean([Affine(torch.zeros(2), torch.ones(2))]).value
