"""The tests can fail: they detect each mutation, applied to a copy of the package.

`python -m pytest -m slow tests/test_mutations.py` mutates two copies at a time, one in each worker.
"""

import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

import minillm
from tests import mutations
from tests.kernels.mutations import KERNEL_MUTATIONS
from tests.law_mutations import LAW_MUTATIONS
from tests.laws import CELLS, EVERYWHERE
from tests.prompting.mutations import PROMPTING_MUTATIONS

MUTATIONS = mutations.MUTATIONS + LAW_MUTATIONS + PROMPTING_MUTATIONS + KERNEL_MUTATIONS
HOME = Path(minillm.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_old_text_of_a_mutation_occurs_once_and_is_changed(mutation):
    assert (HOME / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert (TESTS / mutation.test.split("::")[0]).exists()


def test_each_law_has_a_mutation_for_a_method_that_it_applies_to():
    cells = {f"laws.py::test_the_law_holds[{law}-{name}-{style}]": law for law, name in CELLS for style in EVERYWHERE}
    assert {cells[mutation.test] for mutation in LAW_MUTATIONS} == set(range(1, 13))
    assert len({mutation.what for mutation in LAW_MUTATIONS}) == len(LAW_MUTATIONS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package, the tests and the settings; the working directory comes first on Python's path."""
    home = tmp_path_factory.mktemp("mutated")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HOME, home / "minillm", ignore=ignored)
    shutil.copytree(TESTS, home / "tests", ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(TESTS.parent / name, home / name)
    return home


CLOCK = count(1)


def _write(file, text):
    """Writes with a new modification time, by which Python decides in seconds whether to compile a file again."""
    file.write_text(text)
    second = next(CLOCK)
    os.utime(file, (second, second))


def _run(home, *tests):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # In one process, without the options of pyproject.toml.
    command = [sys.executable, "-m", "pytest", "-qx", "-m", "not slow", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile", "first failure", *tests]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_unchanged_copy_passes(copy):
    done = _run(copy, *sorted({f"tests/{mutation.test}" for mutation in MUTATIONS}))
    assert done.returncode == 0, done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import minillm; print(minillm.__file__)"], cwd=copy, capture_output=True, text=True
    )
    assert Path(where.stdout.strip()).parent == copy / "minillm"


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_is_detected(copy, mutation):
    file = copy / "minillm" / mutation.file
    original = file.read_text()
    _write(file, original.replace(mutation.old, mutation.new))
    try:
        done = _run(copy, f"tests/{mutation.test}")
    finally:
        _write(file, original)
    # 1: a test failed; negative: it crashed, by a write out of bounds; 2 or 4: none could be run.
    assert done.returncode == 1 or done.returncode < 0, f"{mutation.what} was not detected:\n{done.stdout[-2000:]}"
    print(next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), done.returncode))
