"""The non-linearities in numpy."""

import numpy as np

from minillm.reference.feed_forward import gelu_backward, gelu_forward, relu_backward, relu_forward, swiglu_forward
from tests.tolerances import assert_close


def test_large_inputs_do_not_overflow():
    for forward, backward in ((relu_forward, relu_backward), (gelu_forward, gelu_backward)):
        out, cache = forward(np.array([-1e3, 1e3]))
        assert_close(out, [0.0, 1e3], "law")
        assert_close(backward(np.ones(2), cache)["up"], [0.0, 1.0], "law")
    assert_close(swiglu_forward(np.array([-1e3, 1e3]), np.ones(2))[0], [0.0, 1e3], "law")
