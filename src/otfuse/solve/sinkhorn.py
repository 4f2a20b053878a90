"""Entropic couplings that are right at any regulariser: Sinkhorn's iteration, finished by Newton's.

Why not Sinkhorn in the log domain alone: the number of steps grows with ``range / regulariser``. On 384 x 384 costs
with maximum 1 and a regulariser of 1e-4, POT 0.9.7 leaves marginal errors of 2e-1 (log, 200 steps, 2 s), not-a-number
(stabilised) and 2e-5 (epsilon scaling), and none of its forms is converged at 5e-3 either. Newton's iteration
reaches 1e-9 in 0.2 s at all of these. POT is the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from otfuse.core.coupling import Coupling
from otfuse.solve.assignment import coupling

# The kernel form is safe up to this range / regulariser (r). Costs from zero, exponents of the kernel lie in [-r, 0]; a
# fixed point has log-scalings that vary by at most r, a step never takes scalings further from it in the largest log
# (Franklin and Lorenz 1989), so log-scalings stay within 2 r + log(n) = 616 < 708, where float64 ends, and what
# underflows in a sum is below exp(-708 + r) of it.
_KERNEL_RANGE = 300.0
_KERNEL_STEPS = 300
_KERNEL_STOP = 1e-9  # L2 of the anchor's marginal, looked at every tenth step: the rule of POT and the published code
CONVERGED = 1e-6  # L1 marginal error (of a total mass of 1) up to which a coupling is called converged
_KERNEL_ENOUGH = 1e-7  # the same, up to which the kernel form's result is taken as it is
_NEWTON_STOP = 1e-9
_NEWTON_STEPS = 80
_STAGE_STOP = 1e-3  # a stage before the last only has to bring the potentials near
_STAGE_RANGE = 50.0  # range / regulariser of the first stage
_STAGE_FACTOR = 2.0


def sinkhorn(cost: torch.Tensor, regulariser: float) -> Coupling:
    """``argmin_P <P, cost> - regulariser * H(P)`` with uniform marginals; ``cost[na, ns]`` finite float64.

    ``range / regulariser <= 300``: Sinkhorn's iteration in kernel form (Cuturi 2013), with the start, order of updates
    and stopping rule of the published code (source scalings uniform, anchor updated first), for up to 300 steps; what
    is not converged then is finished by Newton's iteration. Above, Newton's iteration at regularisers that fall by
    halves, from a start in kernel form.

    ``steps`` counts both kinds. ``converged`` says that the L1 marginal error is at most 1e-6. The objective lies
    between the exact optimum and that plus ``regulariser * log(min(na, ns))``, up to ``marginal_error * range``.
    """
    shifted = cost - cost.min()  # the plan does not move with a constant, the range of exponents does
    span = shifted.max().item()
    if span <= _KERNEL_RANGE * regulariser:
        mass, potential, steps = _kernel(shifted, regulariser)
        result = coupling(mass, cost, steps=steps)
        if result.marginal_error <= _KERNEL_ENOUGH:
            return result
    else:
        _, potential, steps = _kernel(shifted, span / _STAGE_RANGE)
    mass, newton_steps = _newton_stages(shifted, regulariser, potential)
    result = coupling(mass, cost, steps=steps + newton_steps)
    return Coupling(mass, result.objective, result.marginal_error <= CONVERGED, result.marginal_error, result.steps)


def _kernel(cost: torch.Tensor, regulariser: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Plan ``[na, ns]``, anchor potential ``[na]`` and steps taken of the kernel form."""
    na, ns = cost.shape
    kernel = (cost / -regulariser).exp_()
    source = kernel.new_full((ns,), 1 / ns)
    carried = kernel @ source
    for step in range(_KERNEL_STEPS):
        anchor = (1 / na) / carried
        source = (1 / ns) / (kernel.T @ anchor)
        carried = kernel @ source
        if step % 10 == 0 and (anchor * carried - 1 / na).norm() < _KERNEL_STOP:
            break
    return anchor[:, None] * kernel * source, regulariser * anchor.log(), step + 1


def _newton_stages(cost: torch.Tensor, regulariser: float, potential: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Plan and steps at ``regulariser``, reached by halves from where Newton's iteration converges from afar."""
    if turned := cost.shape[0] > cost.shape[1]:  # the system to solve is as large as the first side
        cost, potential = cost.T.contiguous(), cost.new_zeros(cost.shape[1])
    span, steps = cost.max().item(), 0
    now = max(regulariser, span / _STAGE_RANGE)
    while True:
        last = now <= regulariser
        # An exponent of size r is known to 2e-16 r: no marginal can be better than that.
        stop = max(_NEWTON_STOP, 1e-15 * span / now) if last else _STAGE_STOP
        point, taken = _newton(cost, now, potential, stop)
        steps, potential = steps + taken, point.potential
        if last:
            return (point.mass.T.contiguous() if turned else point.mass), steps
        now = max(regulariser, now / _STAGE_FACTOR)


@dataclass(slots=True, eq=False)
class _Point:
    """The dual at one potential: ``mass[n, m]`` with exact columns, its rows, their L1 error and the dual value."""

    potential: torch.Tensor
    mass: torch.Tensor
    rows: torch.Tensor
    error: float
    value: float

    @classmethod
    def at(cls, potential: torch.Tensor, cost: torch.Tensor, regulariser: float) -> _Point:
        """Other side solved in closed form (one softmax per column), so that one potential is left to find."""
        n, m = cost.shape
        logits = (potential[:, None] - cost).div_(regulariser)
        top = logits.amax(0)
        mass = logits.sub_(top).exp_()
        sums = mass.sum(0)
        mass.div_(sums * m)
        rows = mass.sum(1)
        value = potential.mean() - regulariser * (top + sums.log()).mean()
        return cls(potential, mass, rows, (rows - 1 / n).abs().sum().item(), value.item())


def _newton(cost: torch.Tensor, regulariser: float, potential: torch.Tensor, stop: float) -> tuple[_Point, int]:
    """Damped Newton ascent of the concave dual in one potential (Brauer, Clason, Lorenz and Wirth 2017)."""
    point = _Point.at(potential, cost, regulariser)
    for step in range(_NEWTON_STEPS):
        if point.error <= stop:
            return point, step
        laplacian = (point.mass @ point.mass.T).mul_(-cost.shape[1])
        for damping in (min(1e-3, point.error), 0.1, 10.0):  # the last is nearly a Sinkhorn step
            if (better := _ascend(cost, regulariser, point, laplacian, damping)) is not None:
                break
        else:
            return point, step
        point = better
    return point, _NEWTON_STEPS


def _ascend(
    cost: torch.Tensor, regulariser: float, point: _Point, laplacian: torch.Tensor, damping: float
) -> _Point | None:
    """Return the point after one damped step with backtracking, or None if no step in this direction ascends."""
    n = cost.shape[0]
    system = laplacian.clone()
    # Singular along constants and between units that share no mass: damping in the metric of the rows, plus a floor.
    system.diagonal().add_(point.rows * (1 + damping) + 1e-14 / n)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return None
    gradient = 1 / n - point.rows
    direction = regulariser * torch.cholesky_solve(gradient[:, None], factor)[:, 0]
    direction -= direction.mean()
    slope, longest = (gradient @ direction).item(), direction.abs().max().item()
    if not 0 < longest < float("inf"):
        return None
    size = min(1.0, 20 * regulariser / longest)  # beyond, the quadratic model knows nothing of the exponentials
    for _ in range(20):
        after = _Point.at(point.potential + size * direction, cost, regulariser)
        # Near the optimum the gain in value drowns in rounding, the error does not.
        if after.value > point.value + 1e-4 * size * slope or after.error < 0.5 * point.error:
            return after
        size /= 2
    return None
