"""The tests can fail: they detect each mutation, applied to a copy of the package.

`python -m pytest -m slow tests/test_mutations.py` mutates two copies at a time, one in each worker.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from itertools import count
from pathlib import Path

import pytest

import minillm
from tests import forking
from tests.kernels.mutations import KERNEL_MUTATIONS
from tests.law_mutations import LAW_MUTATIONS
from tests.laws import CELLS, EVERYWHERE
from tests.mutations import MUTATIONS as OTHER_MUTATIONS
from tests.mutations import Mutation, equal
from tests.prompting.mutations import PROMPTING_MUTATIONS

MUTATIONS = OTHER_MUTATIONS + LAW_MUTATIONS + PROMPTING_MUTATIONS + KERNEL_MUTATIONS
HOME = Path(minillm.__file__).parent
TESTS = Path(__file__).parent


@cache
def _tree(file):
    return ast.parse((HOME / file).read_text())


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_changes_one_place(mutation):
    if mutation.file.endswith(".py"):
        mutation.place(_tree(mutation.file))
        assert not equal(*mutation.nodes())
    else:
        assert (HOME / mutation.file).read_text().count(mutation.old) == 1
        assert mutation.old != mutation.new
    file, _, name = mutation.test.partition("::")
    assert name.split("[")[0] in (TESTS / file).read_text()


def test_a_mutation_ignores_layout_and_comments():
    source = "def f(a):\n    b = g(  # a comment\n        a,\n    )\n    b += 1\n\n\ndef h(a):\n    return g(a)\n"
    assert Mutation("", "f.py", "b = g(a)\nb += 1", "pass", "").apply(source).startswith("def f(a):\n    pass\n\n")
    assert Mutation("", "f.py", "g(a)", "a", "", "h").apply(source).endswith("def h(a):\n    return a")
    with pytest.raises(AssertionError, match=r"occurs 2 times in f\.py, not once"):
        Mutation("", "f.py", "g(a)", "a", "").apply(source)


def test_each_law_has_a_mutation_for_a_method_that_it_applies_to():
    cells = {f"laws.py::test_the_law_holds[{law}-{name}-{style}]": law for law, name in CELLS for style in EVERYWHERE}
    assert {cells[mutation.test] for mutation in LAW_MUTATIONS} == set(range(1, 13))
    assert len({mutation.what for mutation in LAW_MUTATIONS}) == len(LAW_MUTATIONS)


def _plain(name, source):
    """The source as a mutation writes it, which changes nothing."""
    return ast.unparse(ast.parse(source)) if name.endswith(".py") else source


class Copy:
    """A copy of the package, the tests and the settings, and a process that runs tests there."""

    def __init__(self, home):
        self.home, self.seconds, ignored = home, count(1), shutil.ignore_patterns("__pycache__")
        shutil.copytree(HOME, home / "minillm", ignore=ignored)
        shutil.copytree(TESTS, home / "tests", ignore=ignored)
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(TESTS.parent / name, home / name)
        for name in {mutation.file for mutation in MUTATIONS}:
            self.write(name, _plain(name, self.read(name)))
        # The working directory comes first on Python's path.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking"],
            cwd=home, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def read(self, name):
        return (self.home / "minillm" / name).read_text()

    def write(self, name, text):
        """With a new modification time, by which Python decides in seconds whether to compile a file again."""
        file, second = self.home / "minillm" / name, next(self.seconds)
        file.write_text(text)
        os.utime(file, (second, second))

    def run(self, marks, *tests, profile="first failure"):
        """The exit status of pytest and its output, without the options of pyproject.toml."""
        options = ["-qx", "-o", "addopts=", "-p", "no:cacheprovider", "--hypothesis-profile", profile]
        words = [*options, "-m", marks, *(f"tests/{test}" for test in tests)]
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), (self.home / forking.OUTPUT).read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("mutated"))
    yield copy
    copy.process.stdin.close()
    copy.process.wait()


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests of a mutation run in a fork")
PARTS = 8


@FORKS
@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_unchanged_copy_passes(copy, part):
    code, output = copy.run(
        "not slow", *sorted({mutation.test for mutation in MUTATIONS})[part::PARTS], profile="glance"
    )
    assert code == 0, output


@FORKS
@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_is_detected(copy, mutation):
    original = copy.read(mutation.file)
    copy.write(mutation.file, mutation.apply(original))
    try:
        code, output = copy.run("not slow", mutation.test)
        if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            code, output = copy.run("slow", mutation.test)
    finally:
        copy.write(mutation.file, original)
    # 1: a test failed; negative: it crashed, by a write out of bounds; 2 or 4: none could be run.
    assert code == 1 or (code < 0 and code != -signal.SIGALRM), f"not detected:\n{output[-2000:]}"
    print(next((line for line in output.splitlines() if line.startswith("FAILED")), code))
