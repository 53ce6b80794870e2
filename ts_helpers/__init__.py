"""Helpers of the book on learnable time scales: what its chapters share, tests check, or need as plumbing."""

__version__ = "0.1.0"
