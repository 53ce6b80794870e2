"""Learnable time scales: a thin core to use in a model of one's own, and what the book is made with around it.

- the core: `timescales` (dials, `set_dial`, chrono starts), `cells` (one step of each cell, `unroll`), `fit` (one
  training loop), `seeding`, `progress`, `datasets`; it uses `engine` (compiled recurrences) in `cells.unroll` alone;
- `papers`: what the chapters of one paper share, made of the core;
- `book`: what runs and judges chapters and makes their pages; neither core nor papers need it.

A model of one's own takes ``from ts_helpers.timescales import LogTau, set_dial``, ``from ts_helpers.cells import
unroll`` and ``from ts_helpers.fit import fit``. The package imports none of them: the runner starts without PyTorch.
"""

__version__ = "0.1.0"
