"""What the chapters of one paper share, a module or folder a paper; no module here knows another paper, or the book."""
