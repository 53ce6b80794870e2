"""Draw the README's figure, book/static/readme.svg, from the record of the last `make book`."""

import matplotlib.pyplot as plt

from ts_helpers.book import figures
from ts_helpers.book.paths import ROOT, record_folder
from ts_helpers.book.records import load

record = load(record_folder("matsuki2018/gradient-of-tau"))
tau = record.results["tau"].values
size = record.results["sensitivity"].values[:40]
figures.use_style(record.provenance["scale"])
fig, ax = plt.subplots(figsize=(6.4, 2.8))
figures.plot_runs(ax, tau, size / tau, figures.BLUE, r"learning $\tau$")
figures.plot_runs(ax, tau, size * tau, figures.ORANGE, r"learning $\log\tau$", (0, (4, 1.5)))
ax.set(xscale="log", yscale="log", xlabel=r"time constant $\tau$", ylabel=r"relative step $|\Delta\tau|/\tau$")
ax.set_title(f"Size of a gradient step for a unit error, {len(size)} runs at scale {record.provenance['scale']}")
ax.legend()
fig.savefig(ROOT / "book" / "static" / "readme.svg", metadata={"Date": None})
