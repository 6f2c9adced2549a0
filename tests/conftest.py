"""Settings of all tests: shapes checked by jaxtyping and beartype, hypothesis with a fixed number of examples."""

import os

# Two processes run tests, with one thread each; MINILLM_TEST_THREADS=2 with -n 1 tests two threads. Set before torch is
# imported.
THREADS = int(os.environ.get("MINILLM_TEST_THREADS", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import importlib.util
import pkgutil
import shutil
import signal

import jaxtyping
import pytest
import torch

# Without a GPU, kernels run in triton's interpreter, which must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# Kernels compile their own source, the numpy reference has no jaxtyping annotations, a config checks itself.
UNCHECKED = ("kernels", "reference", "config")

CHROMIUM_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip


def _checked_modules():
    package = importlib.util.find_spec("minillm")
    children = pkgutil.iter_modules(package.submodule_search_locations)
    return [f"minillm.{child.name}" for child in children if child.name not in UNCHECKED]


install_import_hook(_checked_modules(), "beartype.beartype")

# Both runs are deterministic; `-m slow --hypothesis-profile new` draws other examples each time.
settings.register_profile("default", max_examples=20, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=100, deadline=None, derandomize=True, database=None)
settings.register_profile("new", max_examples=100, deadline=None)
# Mutations only have to be detected, so failing examples are not shrunk.
settings.register_profile(
    "first failure", settings.get_profile("default"), max_examples=30, phases=(Phase.explicit, Phase.generate)
)
# `make quick` looks at a few.
settings.register_profile("glance", max_examples=5, deadline=None, derandomize=True, database=None)


def _slow(config):
    return config.getoption("markexpr") == "slow"


def pytest_configure(config):
    # A job in the background ignores Ctrl-C, and one under nohup SIGHUP: so would the tests of interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("thorough" if _slow(config) else "default")


def pytest_runtest_setup():
    """The same random numbers, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Under `-m slow` every hypothesis test runs again, with more examples."""
    if _slow(config):
        for item in items:
            if hasattr(getattr(item, "obj", None), "hypothesis"):
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def _shapes(request):
    """The default run checks shapes where a test is marked `checked`, the slow run and that with two threads always."""
    checked = request.node.get_closest_marker("checked") is not None
    jaxtyping.config.update("jaxtyping_disable", not (checked or THREADS > 1 or _slow(request.config)))


@pytest.fixture(autouse=True)
def _threads():
    """Resets the number of threads, which a command may have changed and which affects rounding."""
    torch.set_num_threads(THREADS)


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium. Skips the test where it is not installed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*CHROMIUM_OPTIONS, f"--user-data-dir={tmp_path}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def command(place, monkeypatch, capsys):
    """Runs `minillm` with arguments in the `place` of the test file; returns its output."""
    from minillm.cli import main

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setattr("sys.argv", ["minillm", *words])
        main()
        return capsys.readouterr().out

    return run
