"""The tests can fail: each mutation of the arithmetic is applied to a copy of the package, and noticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minillm
from tests.mutations import MUTATIONS

HOME = Path(minillm.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_has_one_place_and_changes_it(mutation):
    assert (HOME / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert (TESTS / mutation.test).exists()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A checkout of its own: package, tests and settings; the working directory comes first on Python's path."""
    home = tmp_path_factory.mktemp("mutated")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HOME, home / "minillm", ignore=ignored)
    shutil.copytree(TESTS, home / "tests", ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(TESTS.parent / name, home / name)
    return home


def _run(home, *tests):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
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
def test_a_mutation_is_noticed(copy, mutation):
    file = copy / "minillm" / mutation.file
    original = file.read_text()
    file.write_text(original.replace(mutation.old, mutation.new))
    try:
        done = _run(copy, f"tests/{mutation.test}")
    finally:
        file.write_text(original)
    # 1 means that tests failed; 2 or 4 would mean that none could be run.
    assert done.returncode == 1, f"{mutation.what} was not noticed:\n{done.stdout[-2000:]}"
    print(next(line for line in done.stdout.splitlines() if line.startswith("FAILED")))
