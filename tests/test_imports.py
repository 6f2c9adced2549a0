"""The order of imports, and that every module can be imported with the core dependencies alone."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import minillm

HOME = Path(minillm.__file__).parent
FILES = sorted(HOME.rglob("*.py"))

# Each row imports only from the rows above it; a room is a folder or a module of minillm/.
ROWS = [
    {"errors"},
    {"shapes"},
    {"config"},
    {"runtime"},
    {"reference", "ops"},
    {"quantised"},
    {"fast"},
    {"kernels"},
    {"operations"},
    {"key_values"},
    {"decoder"},
    {"chat_worker"},
    {"chat_template"},
    {"tokenizer"},
    {"generation"},
    {"data"},
    {"adapt"},
    {"hub"},
    {"adapters"},
    {"training"},
    {"prompting"},
    {"classifier", "play"},
    {"lab"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
FACADES = {"__init__.py", "adapt/__init__.py"}
"""They offer names from later rows, and load them at first use."""
MAY_COMPARE = {"reference", "training", "lab"}
"""Rooms that may import the numpy reference; nothing that computes for a user depends on it."""
EXTRAS = {
    "transformers", "peft", "sklearn", "matplotlib", "triton", "pytest", "hypothesis", "beartype", "nbformat",
    "xllamacpp", "starlette", "uvicorn", "selenium",
}  # fmt: skip


@cache
def _imports(path):
    """The names that a file imports at any time, without those for the type checker."""
    tree = ast.parse(path.read_text())
    typing_only = {id(node) for test in ast.walk(tree) if _is_type_checking(test) for node in ast.walk(test)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
            assert node.level == 0, f"{path.name} has a relative import; write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import) and id(node) not in typing_only:
            names |= {alias.name for alias in node.names}
    return names


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _name(path):
    """The module of a file within the package: "ops.lora", "decoder", "hub"."""
    return ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__")


NAMES = {_name(path) for path in FILES}


def _inner(path):
    """The modules of minillm that a file imports, without the package itself."""
    names = {name.removeprefix("minillm.") for name in _imports(path) if name.startswith("minillm.")}
    return {name if name in NAMES else name.rpartition(".")[0] for name in names} - {"", "__init__", _name(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_imports_run_one_way(path):
    outside = {name.split(".")[0] for name in _imports(path)}
    assert not outside & {"transformers", "peft", "xllamacpp"}, "minillm never imports its test oracles"
    if path == HOME / "__init__.py":
        return
    room = _name(path).split(".")[0]
    for imported in {module.split(".")[0] for module in _inner(path)} - {room}:
        assert LEVEL[imported] < LEVEL[room], f"{room} imports {imported}, which is not in a row above"
        assert imported != "reference" or room in MAY_COMPARE, f"{room} imports the reference"
        assert imported != "kernels" or room == "operations", f"{room} imports a kernel"
    if room == "hub" and not path.stem.startswith(("peft", "gguf_lora")):
        assert not any(module.startswith("adapt") for module in _inner(path))


def test_there_is_no_import_cycle():
    """Lazy imports included; the error lists the modules of the cycle."""
    graph = {_name(path): _inner(path) for path in FILES if str(path.relative_to(HOME)) not in FACADES}
    TopologicalSorter(graph).prepare()


def test_the_decoder_stays_short():
    assert len((HOME / "decoder.py").read_text("utf-8").splitlines()) <= 230


def test_the_reference_imports_numpy_and_the_standard_library_alone():
    for path in (HOME / "reference").glob("*.py"):
        for name in _imports(path):
            first = name.split(".")[0]
            assert first in sys.stdlib_module_names or first == "numpy" or name.startswith("minillm.reference")


def _run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_the_reference_loads_without_torch():
    modules = ", ".join(f"minillm.{name}" for name in sorted(NAMES) if name.startswith("reference"))
    program = f"import sys, {modules}; print(sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = _run(program)
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert "numpy" in loaded
    assert not loaded & {"torch", "jaxtyping", "einops", "tokenizers", "beartype"}


def test_every_module_imports_with_the_core_dependencies_alone():
    """The packages of the extras cannot be imported, as if they were not installed."""
    modules = [f"minillm.{name}" for name in sorted(NAMES) if not name.startswith(("__", "kernels.", "play.server"))]
    done = _run(f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            caller = sys._getframe(1)
            while caller.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
                caller = caller.f_back
            if caller.f_globals.get("__name__", "").startswith("minillm"):
                raise ModuleNotFoundError(f"No module named {{name!r}}, which belongs to an extra", name=name)

sys.meta_path.insert(0, Missing())
import importlib
for module in {modules}:
    importlib.import_module(module)
""")
    assert done.returncode == 0, done.stderr


def test_importing_minillm_imports_no_torch():
    done = _run("import sys, minillm; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"
