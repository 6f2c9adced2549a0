"""Options of experiments."""

import pytest

from minillm import InputError
from minillm.lab.experiment import ExperimentOptions


def test_options_that_cannot_work_are_refused():
    for wrong in ({"threads": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            ExperimentOptions(**wrong)
