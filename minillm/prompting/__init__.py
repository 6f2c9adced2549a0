"""Asking a model by its prompt (place 1 of figure 1): templates, and the scores of its answers."""
