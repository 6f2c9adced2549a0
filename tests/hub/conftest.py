"""SmolLM2, downloaded once for all tests that need it."""

import pytest

import minillm
from minillm.errors import InputError
from minillm.hub.pull import pull


@pytest.fixture(scope="session")
def smollm2_path():
    try:
        return pull("smollm2-135m-instruct")
    except InputError as problem:
        if "cannot be downloaded" in str(problem):
            pytest.skip(str(problem))
        raise


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    return minillm.load(smollm2_path)
