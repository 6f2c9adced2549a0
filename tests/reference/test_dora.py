"""The norms that DoRA divides by, in numpy."""

import numpy as np
from hypothesis import given

from minillm.reference.dora import updated_norms_forward
from tests.strategies import arguments
from tests.tolerances import assert_close


@given(arguments("updated_norms"))
def test_they_are_the_norms_of_the_matrix_that_is_not_formed(given):
    formed = given["weight"] + given["scale"] * given["b"] @ given["a"]
    assert_close(updated_norms_forward(**given)[0], np.linalg.norm(formed, axis=1), "law")
