"""Draw the picture of the README, of the first page and of links to it, book/static/dials.*: one leak, four dials."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from ts_helpers.book import figures
from ts_helpers.book.paths import ROOT
from ts_helpers.timescales import Clamped, Direct, Gate, LogTau

figures.use_style("book")
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1), width_ratios=(1, 1.3))

step = np.arange(41)
for (tau, at), color, dash in zip({2: 4, 8: 13, 32: 27}.items(), figures.COLOURS, figures.DASHES, strict=False):
    left.plot(step, 1 - (1 - 1 / tau) ** step, color=color, ls=dash, lw=2)
    height = 1 - (1 - 1 / tau) ** at
    left.annotate(rf"$\tau$ = {tau}", (at, height), (5, -14), textcoords="offset points", color=color)
left.set(xlabel="steps of a constant input", ylabel="state", ylim=(0, 1.05), title="One leak")

dials = {
    r"$\alpha$ itself (B)": Direct(),
    "gate's bias (D)": Gate(),
    r"$\log\tau$ (C)": LogTau(),
    r"$\tau$, clamped (A)": Clamped(),
}
tau = torch.logspace(0.01, 3, 60, dtype=torch.float64)
colors = (figures.ORANGE, figures.GREEN, figures.BLACK, figures.BLUE)
for (label, dial), color, dash, up in zip(dials.items(), colors, figures.DASHES, (0, -9, 9, 0), strict=True):
    raw = dial.inverse(1 / tau).requires_grad_()
    [slope] = torch.autograd.grad(dial(raw).log().sum(), raw)  # of log alpha, which is that of log tau but for its sign
    right.plot(tau, slope.abs(), color=color, ls=dash, lw=2)
    right.annotate(label, (1000, slope[-1].abs()), (5, up), textcoords="offset points", color=color, va="center")
right.set(xscale="log", yscale="log", xlim=(1, 1000), xlabel=r"time constant $\tau$ (steps)",
          ylabel=r"change of $\tau$ (%)", title="Four dials: what a step of 0.01 does")  # fmt: skip
fig.savefig(ROOT / "book" / "static" / "dials.svg", metadata={"Date": None})
fig.savefig(ROOT / "book" / "static" / "dials.png", dpi=140)
