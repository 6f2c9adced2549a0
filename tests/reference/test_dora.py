"""The norms that DoRA divides by, in numpy."""

import numpy as np
from hypothesis import given

from minillm.reference.dora import updated_norms_forward
from tests.strategies import arguments
from tests.tolerances import assert_close


@given(arguments("updated_norms"))
def test_they_are_the_row_norms_of_the_full_matrix(given):
    full = given["weight"] + given["scale"] * given["b"] @ given["a"]
    assert_close(updated_norms_forward(**given)[0], np.linalg.norm(full, axis=1), "law")
