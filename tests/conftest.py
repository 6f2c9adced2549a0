"""What every test runs under: shapes checked by jaxtyping and beartype, and hypothesis with a fixed budget."""

import os

# Tests run two at a time: with a thread each, they do not wait for one another. MINILLM_TEST_THREADS=2 -n 1 runs them
# with two. Set before torch is imported.
THREADS = int(os.environ.get("MINILLM_TEST_THREADS", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import importlib.util
import pkgutil

import pytest
import torch

# Without a GPU kernels run in triton's interpreter, which is chosen when triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# Kernels compile their own source, the numpy reference has no jaxtyping annotations, a config checks itself.
UNCHECKED = ("kernels", "reference", "config")


def _checked_modules():
    package = importlib.util.find_spec("minillm")
    children = pkgutil.iter_modules(package.submodule_search_locations)
    return [f"minillm.{child.name}" for child in children if child.name not in UNCHECKED]


install_import_hook(_checked_modules(), "beartype.beartype")

# The default run is the same on every day; the long one looks for what it has not seen yet.
settings.register_profile("default", max_examples=30, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
# Mutations only have to be noticed: the smallest example that notices them may be any.
settings.register_profile(
    "first failure", settings.get_profile("default"), phases=(Phase.explicit, Phase.generate), database=None
)
settings.register_profile("glance", max_examples=5, deadline=None, derandomize=True, database=None)


def _long(config):
    return config.getoption("markexpr") == "slow"


def pytest_configure(config):
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("thorough" if _long(config) else "default")


def pytest_runtest_setup():
    """The same numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Under `-m slow` every law runs again, with the long count."""
    if _long(config):
        for item in items:
            if hasattr(getattr(item, "obj", None), "hypothesis"):
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def _threads():
    """A command that was tested before may have asked for others, and sums differ in their last digit by threads."""
    torch.set_num_threads(THREADS)


@pytest.fixture
def command(place, monkeypatch, capsys):
    """`minillm` with some words, run in the test file's `place`; returns what it prints."""
    from minillm.cli import main

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setattr("sys.argv", ["minillm", *words])
        main()
        return capsys.readouterr().out

    return run
