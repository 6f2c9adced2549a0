"""The notebooks run from top to bottom, their assertions hold, and their committed outputs are up to date."""

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
SECONDS = 300  # for one cell, on a busy machine
LARGEST = 700_000  # bytes of a committed file

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def weights():
    try:
        pull("smollm2-135m-instruct")
    except InputError as problem:
        if "cannot be downloaded" in str(problem):
            pytest.skip(str(problem))
        raise


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_and_its_assertions_hold(path, weights, monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # do not write to the history of the user
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in answers(notebook)]
    execute(notebook, tmp_path)
    assert pictures(notebook) == pictures(nbformat.read(path, as_version=4))


@pytest.mark.slow
def test_the_decoder_notebook_runs_on_the_base_that_is_in_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = first.source.replace('base = "smollm2-135m-instruct"', 'base = "tiny"')
    execute(notebook, tmp_path)
    assert pictures(notebook) == pictures(nbformat.read(NOTEBOOKS[0], as_version=4))


@every_notebook
def test_a_committed_notebook_has_outputs_in_order_text_before_its_code_and_two_exercises(path):
    notebook, text = nbformat.read(path, as_version=4), path.read_text("utf-8")
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(text.encode()) < LARGEST
    for before, cell in pairwise(notebook.cells):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", f"no text before:\n{cell.source}"
    assert not re.search(r"/(home|root|tmp|Users|usr|opt)/", text), "the notebook names a directory of a machine"
    streams = [output for cell in code for output in cell.outputs]
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in streams)
    assert len(collapsed(notebook)) >= 2, "a notebook ends with two exercises, whose answers are collapsed"
    source = "\n".join(cell.source for cell in code)
    assert re.search(r"^import minillm", source, re.MULTILINE)
    assert not re.search(r"^\s*class ", source, re.MULTILINE), "a class belongs into minillm"


def execute(notebook, directory):
    """Raises with the cell and its traceback where one fails."""
    place = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()


def collapsed(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"<details>.*?</details>", text, re.DOTALL)


def answers(notebook):
    """The code in the collapsed answers of the exercises."""
    return [code for text in collapsed(notebook) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def pictures(notebook):
    """The indices of the cells that show a picture."""
    outputs = [(index, output) for index, cell in enumerate(notebook.cells) for output in cell.get("outputs", [])]
    return [index for index, output in outputs if "image/png" in output.get("data", {})]
