"""Data that the chapters make for themselves, one small module a family."""
