"""Learnable time scales: a thin core to use in a model of one's own, and what the book is made with around it.

The core is `timescales`, `cells` (which call `engine`, compiled recurrences), `fit`, `seeding`, `progress` and
`datasets`. `papers` has what the chapters of one paper share, made of the core, one with the engine's numbers; `book`
runs and judges chapters and makes their pages. This module imports none of them: the runner starts without PyTorch.
"""

__version__ = "0.1.0"
