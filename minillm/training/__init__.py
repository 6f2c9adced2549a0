"""Gradient descent, one loop for every method, and the caches of frozen layers; README.md lists the files."""
