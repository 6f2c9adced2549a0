"""The arithmetic of the decoder: pure functions on tensors, which own no parameters.

Each file has its numpy twin, forward and backward, under the same name in `minillm.reference`.
"""
