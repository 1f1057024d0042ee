"""The bilevel optimiser: its gradients against autograd, its schedules, and what it may never do to a basis."""

import math

import pytest
import torch
from torch.linalg import qr, svd

from seqlora.lora.attach import Stack
from seqlora.method.optimizer import BilevelOptimizer, Constraint, Level, Rates
from seqlora.method.penalty import Interference, overlap_penalty

L, M, N, R = 3, 5, 12, 2


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bases(p, dtype=torch.float64):
    both = qr(randn(L, N, R + p, seed=1))[0].to(dtype)
    return both[..., :R].contiguous(), both[..., R:].contiguous()


def make_stack(p=4, dtype=torch.float64, zero=False):
    B, F = bases(p, dtype)
    A = torch.zeros(L, M, R, dtype=dtype) if zero else randn(L, M, R, seed=2).to(dtype)
    return Stack([f"layer {i}" for i in range(L)], A, B, dtype), F


def leaves(stack):
    return stack.A.detach().clone().requires_grad_(), stack.B.detach().clone().requires_grad_()


# -- penalties


def test_interference_is_the_predicted_move_of_the_output():
    stack, _ = make_stack()
    V, d, U, e = randn(L, N, 3, seed=3), randn(L, N, seed=4).abs(), randn(L, M, 2, seed=5), randn(L, M, seed=6).abs()
    weight = randn(L, seed=7).abs()
    value = Interference(V, d, U, e, weight).add(stack, 0.7)

    A, B = leaves(stack)
    expected = 0
    for i in range(L):
        C, gamma = V[i] @ V[i].mT + torch.diag(d[i]), U[i] @ U[i].mT + torch.diag(e[i])
        expected = expected + 0.7 * weight[i] * torch.trace(gamma @ A[i] @ B[i].mT @ C @ B[i] @ A[i].mT)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(stack.A.grad, A.grad)
    torch.testing.assert_close(stack.B.grad, B.grad)


def test_overlap_is_the_sum_of_entries():
    stack, F = make_stack()
    value = overlap_penalty(stack, F + 0.1, 0.3)
    _, B = leaves(stack)
    expected = 0.3 * sum((f.mT @ b).abs().sum() for f, b in zip(F + 0.1, B, strict=True))
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(stack.B.grad, B.grad)


def test_penalties_add_to_the_gradient_that_is_there():
    stack, _ = make_stack()
    nothing, one = torch.zeros(L, M, 0, dtype=torch.float64), torch.ones(L, M, dtype=torch.float64)
    penalty = Interference(randn(L, N, 3), torch.zeros(L, N, dtype=torch.float64), nothing, one, one[:, 0])
    penalty.add(stack, 1.0)
    once = stack.A.grad.clone()
    penalty.add(stack, 1.0)
    torch.testing.assert_close(stack.A.grad, 2 * once)


# -- one quadratic problem per level: L(A, B) = sum of ||A B'X - Y||^2 / 2


def quadratic(A, B, data):
    X, Y = data
    return (A @ (B.mT @ X) - Y).square().sum() / 2


LOWER = (randn(L, N, 9, seed=6), randn(L, M, 9, seed=7))
UPPER = (randn(L, N, 9, seed=8), randn(L, M, 9, seed=9))


def by_level(A, B, level):
    return quadratic(A, B, UPPER if level is Level.UPPER else LOWER)


def evaluate(stack, loss_of=by_level, calls=None):
    """The optimiser's callback for a loss (A, B, level), by autograd."""

    def gradients(level):
        A, B = leaves(stack)
        with torch.enable_grad():
            loss = loss_of(A, B, level)
        loss.backward()
        stack.A.grad.add_(A.grad)
        stack.B.grad.add_(B.grad)
        if calls is not None:
            calls.append(level)
        return loss.detach()

    return gradients


def test_finite_differences_give_the_hypergradient():
    stack, _ = make_stack()
    optimizer = BilevelOptimizer([stack], [None], Rates(1e-2, 1e-3), 100, "finite_difference", inner_steps=1)
    gradients = evaluate(stack)
    optimizer.step(gradients)  # lower
    A, B = leaves(stack)
    optimizer.step(gradients)  # the look-ahead
    xi = 1e-2 * Rates(1e-2, 1e-3).at(1, 100)

    step = torch.autograd.grad(quadratic(A, B, LOWER), A, create_graph=True)[0]
    exact = torch.autograd.grad(quadratic(A - xi * step, B, UPPER), B)[0]
    plain = torch.autograd.grad(quadratic((A - xi * step).detach(), B, UPPER), B)[0]
    error = float((stack.B.grad - exact).norm() / exact.norm())
    assert error < 1e-6
    assert float((plain - exact).norm() / exact.norm()) > 1e-2  # the second-order term is not nothing here
    assert torch.equal(stack.A, A)  # the look-ahead itself is taken back


def run(schedule, steps, inner_steps=4, basis_rate=1e-3):
    """Per step: which levels were evaluated, and whether A and B moved."""
    stack, F = make_stack()
    optimizer = BilevelOptimizer([stack], [Constraint(F)], Rates(1e-2, basis_rate), 100, schedule, inner_steps)
    log = []
    for _ in range(steps):
        calls, (A, B) = [], leaves(stack)
        optimizer.step(evaluate(stack, calls=calls))
        log.append((calls, not torch.equal(A, stack.A), not torch.equal(B, stack.B)))
    assert optimizer.passes == sum(len(calls) for calls, _, _ in log)
    return log


def test_joint_moves_both_with_one_pass():
    assert run("joint", 5) == [([Level.LOWER], True, True)] * 5


def test_alternating_moves_the_basis_after_each_round():
    round_ = [([Level.LOWER], True, False)] * 3 + [([Level.LOWER], False, True)]
    assert run("alternating", 8, inner_steps=3) == round_ * 2


def test_finite_difference_takes_four_passes_for_an_upper_step():
    round_ = [([Level.LOWER], True, False)] * 2 + [
        ([Level.LOWER, Level.UPPER, Level.LOWER_AGAIN, Level.LOWER_AGAIN], False, True)
    ]
    assert run("finite_difference", 6, inner_steps=2) == round_ * 2


@pytest.mark.parametrize("schedule", ["joint", "alternating", "finite_difference"])
def test_a_frozen_basis_wastes_no_pass(schedule):
    assert run(schedule, 6, inner_steps=2, basis_rate=0.0) == [([Level.LOWER], True, False)] * 6


# -- the manifold


@pytest.mark.parametrize("schedule", ["joint", "alternating", "finite_difference"])
def test_bases_stay_on_the_manifold(schedule):
    stack, F = make_stack(dtype=torch.float32)
    optimizer = BilevelOptimizer([stack], [Constraint(F)], Rates(3e-2, 3e-2), 60, schedule, 1)
    start = stack.B.clone()
    data = tuple(x.float() for x in LOWER)
    gradients = evaluate(stack, lambda A, B, level: quadratic(A, B, data))
    for _ in range(60):
        optimizer.step(gradients)
        assert float((stack.B.mT @ stack.B - torch.eye(R)).abs().max()) < 2e-6
        assert float((F.mT @ stack.B).abs().max()) < 2e-6
    assert float((stack.B - start).norm()) > 0.1
    momentum = optimizer.upper.state[stack.B]["exp_avg"]
    skew = stack.B.mT @ momentum
    assert float((F.mT @ momentum).abs().max()) < 1e-4 * float(momentum.norm())
    assert float((skew + skew.mT).abs().max()) < 1e-4 * float(momentum.norm())


def test_unconstrained_bases_follow_adam():
    stack, _ = make_stack()
    A, B = leaves(stack)
    rates = Rates(1e-2, 1e-3)
    optimizer = BilevelOptimizer([stack], [None], rates, 30)
    adam = torch.optim.Adam([{"params": [A], "lr": 1}, {"params": [B], "lr": 1}], betas=(0.9, 0.99))
    for step in range(30):
        optimizer.step(evaluate(stack))
        adam.zero_grad()
        quadratic(A, B, LOWER).backward()
        for group, rate in zip(adam.param_groups, (1e-2, 1e-3), strict=True):
            group["lr"] = rate * rates.at(step, 30)
        adam.step()
    torch.testing.assert_close(stack.A, A.detach())
    torch.testing.assert_close(stack.B, B.detach())


def test_joint_reaches_the_best_basis_of_the_complement():
    """min ||A B' - T||^2 over B in M: the rest of the top singular directions of T(I - FF'), plus what F takes."""
    stack, F = make_stack(zero=True)
    T = randn(L, M, N, seed=11)
    optimizer = BilevelOptimizer([stack], [Constraint(F)], Rates(3e-2, 3e-2), 600)
    gradients = evaluate(stack, lambda A, B, level: (A @ B.mT - T).square().sum())
    first = float(optimizer.step(gradients))
    start = float(optimizer.gradient)
    for _ in range(599):
        last = float(optimizer.step(gradients))
    free = torch.stack([svd(f, full_matrices=True)[0][:, F.shape[2] :] for f in F])
    best = float(T.square().sum() - torch.linalg.svdvals(T @ free)[:, :R].square().sum())
    assert best <= last < best + 0.01 * (first - best)
    assert start == 0.0  # A starts at zero, so B has no gradient yet
    assert float(optimizer.gradient) < 0.5 and float(optimizer.residual) < 0.5


def test_rates_warm_up_and_end_at_a_tenth():
    rates = Rates(1.0, 1.0)
    factors = [rates.at(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(0.1, abs=1e-4)
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) <= 1 and factors[10] == pytest.approx(1, abs=1e-3)
    assert factors[500] == pytest.approx(0.55) and factors[1000] == pytest.approx(0.1)
    assert all(math.isfinite(rates.at(step, 1)) for step in range(5))


# -- stacks


def test_bf16_stacks_keep_fp32_masters():
    B, _ = bases(0, torch.float32)
    stack = Stack(["a", "b", "c"], torch.zeros(L, M, R), B, torch.bfloat16)
    assert stack.A.dtype == stack.B.dtype == torch.float32
    assert stack.A_of["b"].dtype == stack.B_of["b"].dtype == torch.bfloat16
    (stack.A_of["b"] * 2).sum().backward()
    stack.gather()
    assert stack.A.grad.dtype == torch.float32
    assert torch.equal(stack.A.grad[1], torch.full((M, R), 2.0)) and not stack.A.grad[0].any()
    stack.A.add_(1 / 3)
    stack.renew()
    assert torch.equal(stack.A_of["a"], stack.A[0].bfloat16())
    stack.zero_grad()
    assert not stack.A_of["b"].grad.any() and not stack.A.grad.any()


def test_layers_share_the_stacks_memory():
    stack, _ = make_stack()
    stack.A.fill_(3.0)
    assert torch.equal(stack.A_of["layer 1"], torch.full((M, R), 3.0, dtype=torch.float64))
    (stack.B_of["layer 2"] * 5).sum().backward()
    assert float(stack.B.grad[2].min()) == 5.0 and not stack.B.grad[:2].any()
