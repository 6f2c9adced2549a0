"""Data: tasks, tables, prompt templates, answer extraction, batches. README.md lists the files."""
