import numpy as np
import pytest
import torch

from ts_helpers.cells import CTRNNCell
from ts_helpers.datasets.ring import ring_oscillation, ring_teacher, ring_weights
from ts_helpers.papers.matsuki2018 import OnlineLearner
from ts_helpers.timescales import LogTau

DT, ETA_W, ETA_T, ETA_U = 0.01, 0.1, 0.01, 0.01


def numpy_paper(W, tau, u, targets, update, forcing):
    """Section 2 of Matsuki & Shibata (2018), one network, neuron by neuron; returns W, tau, u after every step."""
    n, W, tau, u = len(u), W.copy(), tau.copy(), u.copy()
    T, a, x = np.log(tau), np.zeros(len(u)), np.tanh(u)
    history = []
    for d in targets:
        u_before, x_before, alpha = u.copy(), x.copy(), DT / tau
        for j in range(n):
            u[j] = (1 - alpha[j]) * u_before[j] + alpha[j] * sum(W[j, i] * x_before[i] for i in range(n))  # 2
        x = np.tanh(u)  # 3
        for j in range(n):
            a[j] = -(u[j] - u_before[j]) / tau[j] + (1 - alpha[j]) * a[j]  # 11
        if forcing == "before":
            u = u + ETA_U * (d - x) / (1 - x**2)  # 16
            x = np.tanh(u)
        for j in range(n):
            for i in range(n):
                W[j, i] += ETA_W * (d[j] - x[j]) * (1 - x[j] ** 2) * alpha[j] * x_before[i]  # 6
            gradient = (d[j] - x[j]) * (1 - x[j] ** 2) * a[j]
            if update == "log":
                T[j] = np.clip(T[j] + ETA_T * tau[j] * gradient, np.log(0.01), np.log(100))  # 12
                tau[j] = np.exp(T[j])
            elif update == "scaled":
                tau[j] = np.clip(tau[j] + ETA_T * tau[j] ** 2 * gradient, 0.01, 100)  # 15, with the sign put right
            else:
                tau[j] = np.clip(tau[j] + ETA_T * gradient, 0.01, 100)  # 7
        if forcing == "after":
            u = u + ETA_U * (d - x) / (1 - x**2)  # 16
            x = np.tanh(u)
        history.append((W.copy(), tau.copy(), u.copy()))
    return history


def random_networks(networks=5, seed=0):
    """Weights (3, 3, networks), time constants and states (3, networks), 50 targets."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(3, 3, networks), torch.exp(draw(3, networks)), draw(3, networks), torch.tanh(draw(50, 3, networks))


def taught(learner, targets):
    for d in targets:
        learner.step(d)
    return learner


@pytest.mark.parametrize("forcing", ["after", "before"])
@pytest.mark.parametrize("update", ["log", "scaled", "direct"])
def test_learner_equals_numpy_transcription(update, forcing):
    W, tau, u, targets = random_networks()
    learner = OnlineLearner(W, tau, u, dt=DT, eta_w=ETA_W, eta_tau=ETA_T, eta_u=ETA_U, update=update, forcing=forcing)
    expected = [numpy_paper(*(a[..., i].numpy() for a in (W, tau, u, targets)), update, forcing) for i in range(5)]
    for t, d in enumerate(targets):
        learner.step(d)
        for i in range(5):
            ours = learner.W[..., i], learner.tau[:, i], learner.u[:, i]
            for mine, theirs in zip(ours, expected[i][t], strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("networks", [1, 7, 8, 100])
@pytest.mark.parametrize("forcing", ["after", "before"])
@pytest.mark.parametrize("update", ["log", "scaled", "direct"])
def test_many_steps_in_one_call_equal_steps_one_by_one(update, forcing, networks):
    W, tau, u, _ = random_networks(networks)
    u[:, 0], targets = 15, random_networks(3)[-1]  # the first network is thrown onto the bounds
    which = torch.arange(networks) % 3
    rates = dict(eta_w=ETA_W, eta_tau=ETA_T * (1 + which.double()), eta_u=ETA_U)
    many, single = (OnlineLearner(W, tau, u, update=update, forcing=forcing, **rates) for _ in range(2))
    many.teach(targets[:20], which)
    many.teach(targets[20:], which)
    taught(single, targets[..., which])
    for name in ("W", "tau", "T", "u", "x", "a", "touched"):
        ours, theirs = getattr(many, name), getattr(single, name)
        torch.testing.assert_close(ours[..., 1:], theirs[..., 1:], rtol=1e-11, atol=1e-13)
    assert many.touched.tolist() == single.touched.tolist() and single.touched[0]
    outputs = torch.stack([single.step() for _ in range(30)])
    torch.testing.assert_close(many.run(30)[..., 1:], outputs[..., 1:], rtol=1e-11, atol=1e-13)


def test_a_state_dies_away_in_many_steps_as_in_steps_one_by_one():
    tau, u = torch.full((3, 5), 0.05, dtype=torch.float64), 1e-3 * random_networks()[2]
    many, single = (OnlineLearner(torch.zeros_like(tau).expand(3, 3, 5), tau, u) for _ in range(2))
    x = [single.step() for _ in range(200)][-1]
    torch.testing.assert_close(many.run(200)[-1], x, rtol=1e-9, atol=0)
    assert x.abs().max() < 1e-17


CHANGES = dict(eta_w=0.0, eta_tau=0.0, eta_u=0.0, tau_gradient="exact", weight_gradient="exact")


@pytest.mark.parametrize("change", CHANGES)
def test_many_steps_equal_single_ones_with_a_rule_off_or_an_exact_gradient(change):
    W, tau, u, targets = random_networks()
    how = dict(eta_w=ETA_W, eta_tau=ETA_T, eta_u=ETA_U) | {change: CHANGES[change]}
    many, single = (OnlineLearner(W, tau, u, **how) for _ in range(2))
    many.teach(targets)
    taught(single, targets)
    for name in ("W", "tau", "u"):
        torch.testing.assert_close(getattr(many, name), getattr(single, name))


def test_step_without_target_equals_the_ctrnn_cell():
    W, tau, u, _ = random_networks(networks=1)
    learner = OnlineLearner(W, tau, u, dt=DT)
    cell = CTRNNCell(0, 3, 0.5, LogTau(DT), generator=torch.Generator()).double()
    cell.alpha = DT / tau[:, 0]
    with torch.no_grad():
        cell.W.copy_(W[..., 0])
        u = u.T
        for _ in range(20):
            u = cell(u.new_zeros(1, 0), u)
            x = learner.step()
    torch.testing.assert_close(x, torch.tanh(u).T)


@pytest.mark.parametrize("forcing", ["after", "before"])
def test_exact_gradients_equal_autograd_through_the_forcing(forcing):
    W, tau, u, targets = random_networks(networks=2)
    how = dict(tau_gradient="exact", weight_gradient="exact", forcing=forcing)
    learner = taught(OnlineLearner(W, tau, u, dt=DT, eta_u=0.05, **how), targets)
    W, tau = W.clone().requires_grad_(True), tau.clone().requires_grad_(True)
    for d in targets:
        alpha = DT / tau
        u = (1 - alpha) * u + alpha * torch.einsum("jir,ir->jr", W, torch.tanh(u))
        u = u + 0.05 * (d - torch.tanh(u)) / (1 - torch.tanh(u) ** 2)
    by_tau, by_W = torch.autograd.grad(u.sum(), (tau, W))
    torch.testing.assert_close(learner.P.sum(0), by_tau)
    torch.testing.assert_close(learner.Q.sum(0), by_W)


def test_local_gradient_is_exact_for_unconnected_neurons():
    _, tau, u, targets = random_networks()
    W = torch.zeros(3, 3, 5).double()
    local, exact = (
        taught(OnlineLearner(W, tau, u, eta_tau=ETA_T, tau_gradient=how), targets) for how in ("local", "exact")
    )
    torch.testing.assert_close(local.tau, exact.tau)


def test_networks_of_a_stack_do_not_disturb_each_other():
    W, tau, u, targets = random_networks()
    rates = dict(eta_w=ETA_W, eta_tau=ETA_T, eta_u=ETA_U)
    W[..., 1] = torch.nan  # one that has diverged
    stack = OnlineLearner(W, tau, u, **rates)
    stack.teach(targets)
    alone = taught(OnlineLearner(W[..., :1], tau[:, :1], u[:, :1], **rates), targets[..., :1])
    torch.testing.assert_close(stack.tau[:, :1], alone.tau)
    assert stack.touched[:2].tolist() == [False, True]


def test_each_network_can_have_its_own_rates():
    W, tau, u, targets = random_networks(networks=2)
    rates = torch.tensor([0.0, ETA_T])
    learner = taught(OnlineLearner(W, tau, u, eta_tau=rates, eta_w=rates.flip(0)), targets)
    for k in range(2):
        assert torch.allclose(learner.tau[:, k], tau[:, k]) == (k == 0)
        assert torch.allclose(learner.W[..., k], W[..., k]) == (k == 1)


@pytest.mark.parametrize("update", ["log", "direct"])
def test_tau_is_held_at_its_bounds_and_the_touch_is_noted(update):
    W, tau, u, targets = random_networks()
    learner = taught(OnlineLearner(W, tau, u, eta_tau=1e4, update=update), targets)
    assert bool(((learner.tau >= 0.01 - 1e-12) & (learner.tau <= 100 + 1e-9)).all())
    assert bool(learner.touched.any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eta_w=-0.1), "eta_w must be 0 or positive, a number or one .*, got -0.1"),
        (dict(eta_tau=float("nan")), "eta_tau must be 0 or positive, .*, got nan"),
        (dict(eta_u=torch.ones(4)), "eta_u must be .* one for each network, got tensor"),
        (dict(dt=float("nan")), r"dt must be in \(0, inf\), got dt=nan"),
        (dict(u=torch.zeros(3, 5, dtype=torch.int64)), "of one type of floats, got .*torch.int64"),
        (dict(u=[[0.0]]), "u must be a Tensor with numbers, got"),
        (dict(which=torch.tensor([0.5])), "which name one or 5 of these, got"),
        (dict(update="linear"), "update must be one of log, scaled, direct, got 'linear'"),
        (dict(forcing="never"), "forcing must be one of after, before, got 'never'"),
        (dict(tau=torch.full((3, 5), 200.0, dtype=torch.float64)), r"tau must lie in \[0.01, 100\], got 200"),
        (dict(W=torch.zeros(2, 3, 5)), "W must be"),
        (dict(which=torch.tensor([5])), r"which name one or 5 of these, got d \(50, 3, 5\), which \[5\]"),
        (dict(which=torch.tensor([-1])), r"which name one or 5 of these, got d \(50, 3, 5\), which \[-1\]"),
    ],
)
def test_learner_refuses_what_it_cannot_use(change, message):
    W, tau, u, targets = random_networks()
    how = dict(W=W, tau=tau, u=u, which=None) | change
    with pytest.raises((ValueError, TypeError), match=message):
        which = how.pop("which")
        OnlineLearner(**how).teach(targets, which)


def test_ring_has_the_papers_weights_and_oscillates_as_its_numpy_transcription():
    W = ring_weights(2, 3, -4)
    for j in range(3):  # anti-clockwise: from j to the next
        assert (W[j, j], W[(j + 1) % 3, j], W[j, (j + 1) % 3]) == (2, 3, -4)
    W, tau = ring_weights().numpy().astype(float), np.array([2.0, 5.0, 10.0])
    u, outputs = np.array([0.0, 1.0, 0.0]), []  # the second neuron starts
    for _ in range(300):
        u = (1 - 0.01 / tau) * u + 0.01 / tau * (W @ np.tanh(u))
        outputs.append(np.tanh(u))
    oscillation = ring_oscillation(6000, ring_teacher())
    np.testing.assert_allclose(oscillation[:300, 1], outputs, rtol=1e-10)
    assert bool((oscillation[3000:].amax(0) > 0.8).all()) and bool((oscillation[3000:].amin(0) < -0.8).all())


def test_ring_refuses_tau_too_small_for_its_step_and_no_steps():
    with pytest.raises(ValueError, match="alpha of a LogTau dial"):
        ring_teacher((0.004, 5, 10))
    with pytest.raises(ValueError, match="n_steps must be 1 or more, got n_steps=0"):
        ring_oscillation(0, ring_teacher())
