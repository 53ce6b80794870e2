"""Helpers of the book on learnable time scales: what its chapters share, tests check, or need as plumbing.

For a model of your own: `timescales` (dials and `set_dial`), `cells` (units and `unroll`), `ensembles` (many networks
at once), `chrono` (where the gates of an LSTM or GRU start). Import from these modules; the package itself imports none
of them, so that the runner starts without PyTorch.
"""

__version__ = "0.1.0"
