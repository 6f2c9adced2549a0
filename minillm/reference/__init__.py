"""The mathematics in numpy: every operation and the whole decoder, forward and backward by hand. See README.md."""
