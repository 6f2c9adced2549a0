"""The whole decoder a second time, in numpy alone: forward, and backward by hand.

Nothing is shared with `minillm.ops` but the names. Each number of the framework is therefore computed by two programs
that were written independently from the mathematics. Everything is in float64, and nothing is optimised.

Every operation is a pair, `name_forward(inputs) -> (out, cache)` and `name_backward(dout, cache) -> {input:
gradient}`; `cache` holds the values that the gradients need. The loss is the one scalar at the end, and `dx`
is short for its derivative with respect to x. The letters after a name are its shape (`minillm/shapes.py`):
`scores_BHTS`. In a `_ND` the N stands for any leading axes.

Read in this order: softmax, linear, embedding, positions, norm, attention, feed_forward, dropout; then layers,
block, tower and decoder; linear_cross_entropy, adamw and training; lora and prefix; sampling; words and bpe.
"""
