"""What the chapters of one paper share, a module a paper; no module here knows another, or the book."""
