"""The loss in numpy."""

import numpy as np

from minillm.reference.linear_cross_entropy import linear_cross_entropy_forward
from tests.tolerances import assert_close


def test_a_zero_head_has_a_loss_of_the_logarithm_of_the_vocabulary():
    loss, _ = linear_cross_entropy_forward(np.ones((3, 2)), np.zeros((11, 2)), np.array([4, -100, 7]))
    assert_close(loss, 2 * np.log(11), "law")
