r"""The networks that read text in Tallec & Ollivier (2018), Appendix A, and their losses; training is elsewhere.

Both read ``(states, state) = network(x, state)``: the final state is the next window's first, once detached, so that
a text can be read on for as long as it goes. A `LanguageModel` predicts what comes next; `nll` and `tbptt_nll` are its
losses.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ts_helpers._check import at_least, instance
from ts_helpers.timescales import chrono_init_

AT_ONCE = 128  # windows; more do not fit into a small GPU with the paper's 2000 units


class StepNorm(nn.Module):
    r"""Batch normalisation of what happens at each time step, with statistics of its own for each.

    .. math:: \mathrm{BN}_k(a) = \beta + \gamma \odot (a - m_k) / \sqrt{v_k + \epsilon}

    In training m and v are mean and variance over the batch, and a running average of them is kept; in evaluation m
    and v are these averages. Steps from ``max_steps`` on share the last ones. Where all of a batch agree, as they do
    about a first state of 0, BN returns the shift.

    Source: Cooijmans et al. (2016), Section 3, with the rates of their code for text8: 0.05 of each batch goes into the
    averages, from mean 0 and variance 1; epsilon is 1e-5. Departure: as torch has it, the averages are of the unbiased
    variance, theirs of the biased one.

    Args:
        features: of a.
        max_steps: steps that have statistics of their own.
        shift: learn a shift, from 0; without one it stays 0.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, max_steps: int, *, shift: bool):
        super().__init__()
        at_least(1, features=features, max_steps=max_steps)
        instance(bool, "True or False", shift=shift)
        self.gain = nn.Parameter(torch.full((features,), 0.1))
        self.shift = nn.Parameter(torch.zeros(features)) if shift else None
        self.register_buffer("mean", torch.zeros(max_steps, features))
        self.register_buffer("variance", torch.ones(max_steps, features))

    def forward(self, a: Tensor, step: int) -> Tensor:
        """Normalise a (batch, features) of a step, the first of which is 0."""
        k = min(step, len(self.mean) - 1)
        return F.batch_norm(a, self.mean[k], self.variance[k], self.gain, self.shift, self.training, 0.05, 1e-5)


class LSTMState(NamedTuple):
    """Where a `BatchNormLSTM` stands in its text.

    Attributes:
        h: the units' output, (batch, hidden).
        u: what their cells hold, (batch, hidden).
        steps: how many steps it has made, to tell which statistics come next.
    """

    h: Tensor
    u: Tensor
    steps: int

    def detach(self) -> "LSTMState":
        """Return the same state, from which no gradient goes back."""
        return LSTMState(self.h.detach(), self.u.detach(), self.steps)


class BatchNormLSTM(nn.Module):
    r"""An LSTM whose gates, and what its cells show, are batch-normalised, step by step.

    .. math::
        (\tilde i, \tilde f, \tilde g, \tilde o)_t &= \mathrm{BN}_t(W h_{t-1}) + \mathrm{BN}_t(U x_t) + b \\
        u_t &= \sigma(\tilde f_t) \odot u_{t-1} + \sigma(\tilde i_t) \odot \tanh(\tilde g_t) \\
        h_t &= \sigma(\tilde o_t) \odot \tanh(\mathrm{BN}_t(u_t))

    Each BN is another `StepNorm`, with gains from 0.1. Only the last has a shift: the other two have b. The cells
    themselves are not normalised, so that what they hold comes through. In training, the drive of a gate has the mean b
    over a batch: where gates start is up to b.

    Source: Cooijmans et al. (2016), Eqs. 6 to 8 and Section 3; Tallec & Ollivier (2018), Appendix A. U and W, each the
    weights of all four gates, have orthonormal columns as in the code of the former (U rows, with more inputs than
    ``4 * hidden_size``); b starts at 0, and at 1 in forget gates. Departure: first states are 0, theirs are learned.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        max_steps: steps from a state of 0 on that have statistics of their own, as many as a training sequence has.
            Training windows that carry their state on all add to the last ones, once they are beyond max_steps.
        generator: draws W and then U.

    Raises:
        ValueError: an argument is below 1; or in training, a batch of one sequence, which has no variance.
    """

    def __init__(self, input_size: int, hidden_size: int, max_steps: int, *, generator: torch.Generator):
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, max_steps=max_steps, generator=generator)
        self.W, self.U = (
            nn.Parameter(nn.init.orthogonal_(torch.empty(4 * hidden_size, columns), generator=generator))
            for columns in (hidden_size, input_size)
        )
        self.b = nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(hidden_size))
        self.norm_h = StepNorm(4 * hidden_size, max_steps, shift=False)
        self.norm_x = StepNorm(4 * hidden_size, max_steps, shift=False)
        self.norm_u = StepNorm(hidden_size, max_steps, shift=True)

    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """Map x (time, batch, input) and a state, or zeros, to h and the last state.

        The h of all steps is (time, batch, hidden).
        """
        if state is None:
            zeros = x.new_zeros(x.shape[1], self.W.shape[1])
            state = LSTMState(zeros, zeros, 0)
        (h, u, steps), states = state, []
        for k, input in enumerate(F.linear(x, self.U).unbind(0), start=steps):
            from_h, from_x = self.norm_h(F.linear(h, self.W), k), self.norm_x(input, k)
            i, f, g, o = (from_h + from_x + self.b).chunk(4, 1)
            u = f.sigmoid() * u + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_u(u, k).tanh()
            states.append(h)
        return torch.stack(states), LSTMState(h, u, steps + len(x))

    def chrono_init_(self, T_max: float, *, generator: torch.Generator) -> None:
        r"""Let each unit forget in a time drawn between 2 and T_max steps.

        .. math:: b_f \sim \log(\mathcal{U}([1, T_{\max} - 1])), \qquad b_i = -b_f

        Source: Tallec & Ollivier (2018), Eq. 16.

        Raises:
            ValueError: T_max is not above 2, or not finite.
        """
        i, f, _, _ = self.b.detach().chunk(4)
        chrono_init_(i, T_max, generator=generator)
        f.copy_(-i)


class RecurrentHighway(nn.Module):
    r"""Gated units that take several gated steps for each step of time.

    .. math::
        g_l &= \sigma(U_g x_t \, [l = 1] + W_{g,l} s_{l-1} + b_{g,l}) \\
        s_l &= (1 - g_l) \odot s_{l-1} + g_l \odot \tanh(U x_t \, [l = 1] + W_l s_{l-1} + b_l)

    for l from 1 to the depth L, where :math:`s_0` is the last :math:`s_L` of the step before. With L = 1 it is
    `cells.GatedCell`. A step of time goes through L gates and keeps the fraction :math:`\prod_l (1 - g_l)` of the
    state: biases with which a unit forgets in T steps let it forget in T layers, which is about T / L steps.

    Source: Zilly et al. (2017), Eqs. 6 to 9, whose transform gate is g; their carry gate is 1 - g, as in their code,
    where b_g starts at -2 for Penn Treebank. Departure: other weights and b are uniform within
    ``1 / sqrt(hidden_size)`` of 0, as in the book's other gated units; theirs within 0.04, about as much for their 830
    units.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        depth: gated steps for each step of time.
        generator: draws the weights, in the order of U, W, b, U_g, W_g.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int, depth: int, *, generator: torch.Generator):
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, depth=depth, generator=generator)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / hidden_size**0.5)

        self.U, self.W = draw(hidden_size, input_size), draw(depth, hidden_size, hidden_size)
        self.b = draw(depth, hidden_size)
        self.U_g, self.W_g = draw(hidden_size, input_size), draw(depth, hidden_size, hidden_size)
        self.b_g = nn.Parameter(torch.full((depth, hidden_size), -2.0))

    def forward(self, x: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x (time, batch, input) and s (batch, hidden), or zeros, to each s (time, batch, hidden) and the last."""
        if s is None:
            s = x.new_zeros(x.shape[1], self.W.shape[2])
        layers = list(zip(*(p.unbind(0) for p in (self.W, self.b, self.W_g, self.b_g)), strict=True))
        states = []
        for input, input_g in zip(F.linear(x, self.U).unbind(0), F.linear(x, self.U_g).unbind(0), strict=True):
            for layer, (W, b, W_g, b_g) in enumerate(layers):
                drive, drive_g = F.linear(s, W, b), F.linear(s, W_g, b_g)
                if layer == 0:
                    drive, drive_g = drive + input, drive_g + input_g
                g = torch.sigmoid(drive_g)
                s = (1 - g) * s + g * torch.tanh(drive)
            states.append(s)
        return torch.stack(states), s

    def chrono_init_(self, T_max: float, *, generator: torch.Generator) -> None:
        r"""Let each unit forget in a time drawn between 2 and T_max + 1 layers, the same in all layers.

        .. math:: b \sim \log(\mathcal{U}([1, T_{\max}])), \qquad b_{g,l} = -b

        Source: Tallec & Ollivier (2018), Appendix A, whose footnote 9 has the times divided by the depth. Departure:
        there transform gates start at b and carry gates at -b, the reverse of their Eq. 16, whose signs are kept here.

        Raises:
            ValueError: T_max is not above 1, or not finite.
        """
        first, *others = self.b_g.detach().unbind(0)
        chrono_init_(first, T_max + 1, generator=generator)
        for b_g in others:
            b_g.copy_(first)


class LanguageModel(nn.Module):
    """Reads symbols, and after each scores every symbol by how likely it is to come next.

    Args:
        embedding: the network's input for each symbol.
        core: the network.
        read_out: scores from its states.
        carried: (batch, hidden), the state in which the first window of a training by `tbptt_nll` begins; it goes on
            from there.
    """

    carried: Tensor | None

    def __init__(
        self,
        embedding: nn.Embedding,
        core: BatchNormLSTM | RecurrentHighway,
        read_out: nn.Linear,
        carried: Tensor | None = None,
    ):
        super().__init__()
        self.embedding, self.core, self.read_out = embedding, core, read_out
        self.register_buffer("carried", carried)  # so that a checkpoint has it too

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map symbols x (time, batch) and a state, or zeros, to scores (time, batch, symbols) and the last state."""
        states, state = self.core(self.embedding(x.long()), state)
        return self.read_out(states), state


def nll(model: LanguageModel, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of windows that have nothing to do with each other, each read from a state of 0.

    Args:
        model: of symbols.
        x: (time, windows), what is read.
        y: the same shape, what comes next.

    Returns:
        In nats per symbol. Over log 2, it is in bits; its exponential is the perplexity.
    """
    total = x.new_zeros((), dtype=torch.float32)
    for some_x, some_y in zip(x.split(AT_ONCE, 1), y.split(AT_ONCE, 1), strict=True):
        total = total + _nll(model(some_x)[0], some_y)
    return total / x.numel()


def tbptt_nll(model: LanguageModel, x: Tensor, y: Tensor, first: Tensor) -> Tensor:
    """Return the cross entropy of successive windows, through which the state goes on.

    In training the state goes on from call to call too; gradients do not.

    Args:
        model: of symbols; to train it, it must have a state to carry.
        x: (windows, time, batch), as `datasets.text.streams` cuts a text.
        y: the same shape, what comes next.
        first: (), whether the first window is read from a state of 0, or from where
            training has come to.

    Returns:
        In nats per symbol, see `nll`.
    """
    total = x.new_zeros((), dtype=torch.float32)
    state = None if first else model.carried
    for window, after in zip(x, y, strict=True):
        scores, state = model(window, state)
        total, state = total + _nll(scores, after), state.detach()
    if model.training:
        model.carried = state
    return total / x.numel()


def _nll(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten().long(), reduction="sum")
