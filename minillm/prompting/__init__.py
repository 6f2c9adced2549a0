"""Place 1 of figure 1, the prompt: asking a model without training it, one idea per file, listed in README.md."""
