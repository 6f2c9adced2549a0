"""The notebooks run from top to bottom, their assertions hold, and what is committed is what they show."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from minillm.errors import InputError
from minillm.hub.pull import pull

nbformat = pytest.importorskip("nbformat", reason="the notebooks need minillm[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need minillm[notebooks]")
pytest.importorskip("ipykernel", reason="the notebooks need minillm[notebooks]")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SECONDS = 300  # for one cell, on a machine that does much else
LARGEST = 700_000  # bytes of a file that is committed

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def weights():
    try:
        pull("smollm2-135m-instruct")
    except InputError as problem:
        if "cannot be downloaded" in str(problem):
            pytest.skip(str(problem))
        raise


@every_notebook
def test_a_notebook_runs_and_its_assertions_hold(path, weights, monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # the kernel's history is not the user's
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()  # raises with the cell and its traceback where one fails
    assert pictures(notebook) == pictures(nbformat.read(path, as_version=4))


@every_notebook
def test_a_committed_notebook_has_been_run_in_order_and_is_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < LARGEST


@every_notebook
def test_a_notebook_teaches_before_it_shows(path):
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in pairwise(cells):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", f"no words before:\n{cell.source}"


@every_notebook
def test_a_notebook_names_no_machine_and_shows_no_warnings(path):
    text = path.read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|Users|usr|opt)/", text)
    streams = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in streams)


@every_notebook
def test_a_notebook_shows_minillm_and_does_not_define_it_again(path):
    source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert re.search(r"^import minillm", source, re.MULTILINE)
    assert not re.search(r"^\s*class ", source, re.MULTILINE)


def pictures(notebook):
    """Which cells show a picture."""
    outputs = [(index, output) for index, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])]
    return [index for index, output in outputs if "image/png" in output.get("data", {})]
