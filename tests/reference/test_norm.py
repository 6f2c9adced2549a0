"""The norms in numpy."""

import numpy as np
import pytest

from minillm.reference.norm import layer_norm_forward, rms_norm_forward
from tests.tolerances import assert_close


def test_a_layer_norm_ignores_a_shift_and_an_rms_norm_does_not():
    hidden, weight = np.array([[1.0, -2.0, 4.0]]), np.ones(3)
    (layer, _), (shifted_layer, _) = (layer_norm_forward(x, weight, np.zeros(3), 1e-9) for x in (hidden, hidden + 5))
    assert_close(shifted_layer, layer)
    (rms, _), (shifted_rms, _) = (rms_norm_forward(x, weight, 1e-9) for x in (hidden, hidden + 5))
    with pytest.raises(AssertionError):
        assert_close(shifted_rms, rms)
