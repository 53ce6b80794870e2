"""Compiled recurrences; what is called from outside is in `recurrence` and `gated`."""
