"""Comparing the methods: one task, one base, every way to adapt."""
