"""The decoder's arithmetic a second time, in numpy alone: forward, and backward by hand.

Nothing here is shared with `minillm.ops` but the names: each number of the framework is computed by two programs
that were written apart from each other, from the mathematics. Everything is in float64, and nothing is fast.

Every operation is a pair, `name_forward(inputs) -> (out, cache)` and `name_backward(dout, cache) -> {input:
gradient}`. There is one scalar at the end, the loss, and `dx` is short for its derivative by x. The letters after
a name are its shape, by the key in `minillm/shapes.py`: `scores_BHTS`. In a `_ND` the N stands for any leading axes.

Read in this order: softmax, linear, embedding, positions, norm, attention, feed_forward, dropout; then layers,
block, tower and decoder; linear_cross_entropy, adamw and training; lora and prefix; sampling; words and bpe.
"""
