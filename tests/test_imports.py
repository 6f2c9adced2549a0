"""The imports run one way, and every module can be imported with the core dependencies alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minillm

HOME = Path(minillm.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(HOME.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in HOME.rglob("*.py")
    if path.name != "__main__.py"
)

# Each floor imports from floors below it, and within itself; `shapes -> ops` reads: ops stands on shapes.
FLOORS = [
    {"shapes", "config", "errors", "interrupts", "origin", "progress", "schedule", "writing"},
    {"ops", "kernels"},
    {"decoder", "key_values"},
    {
        "generation",
        "training",
        "learner",
        "tokenizer",
        "batches",
        "device",
        "distributed",
        "pretraining",
        "checkpoints",
        "tokenizer_training",
    },
    {"adapt"},
    {"prompting", "tasks", "hub"},
    {"lab"},
    {"commands"},
    {"cli", "__main__"},
]
# Looked up from a function, knowingly: a tokenizer can be made from what a file format says of it.
LOOKS_UP = {("tokenizer", "hub")}
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
EXTRAS = {"transformers", "peft", "sklearn", "matplotlib", "triton", "pytest", "hypothesis", "beartype", "nbformat"}


def _imports(path):
    """(name, whether only when it is needed) of everything that a file imports, but for the type checker alone."""
    tree = ast.parse(path.read_text())
    lazy = {id(node) for function in ast.walk(tree) for node in _inside(function)}
    typing_only = {id(node) for test in ast.walk(tree) if _is_type_checking(test) for node in ast.walk(test)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "minillm" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        assert getattr(node, "level", 0) == 0, f"{path.name} has a relative import: they are written out here"
        yield from ((name, id(node) in lazy) for name in names)


def _inside(node):
    return ast.walk(node) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else ()


def _is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _own(path):
    """The room of minillm that a file belongs to: "ops", "decoder", ..."""
    return path.relative_to(HOME).parts[0].removesuffix(".py")


FILES = [path for path in sorted(HOME.rglob("*.py")) if path.parent != HOME or path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_imports_run_one_way(path):
    room = _own(path)
    rooms = [(name.split(".")[1], lazy) for name, lazy in _imports(path) if name.startswith("minillm.")]
    if room == "reference":
        assert {imported for imported, _ in rooms} <= {"reference"}
        return
    for imported, lazy in rooms:
        assert imported != "reference" or room in ("lab", "commands"), f"{path.name} leans on the reference"
        assert imported != "kernels" or (room in ("ops", "kernels") and (lazy or room == "kernels"))
        knowingly = lazy and (room, imported) in LOOKS_UP
        assert imported == "reference" or knowingly or LEVEL[imported] <= LEVEL[room], f"{room} imports {imported}"
    if room == "hub" and "peft" not in path.stem:
        assert not any(name.startswith("minillm.adapt") for name, _ in _imports(path))


def test_the_reference_imports_numpy_and_the_standard_library_alone():
    for path in (HOME / "reference").glob("*.py"):
        for name, _ in _imports(path):
            first = name.split(".")[0]
            assert first in sys.stdlib_module_names or first == "numpy" or name.startswith("minillm.reference")


def test_transformers_and_peft_are_never_imported():
    for path in FILES:
        for name, _ in _imports(path):
            assert name.split(".")[0] not in ("transformers", "peft"), path


def _run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_the_reference_loads_without_torch():
    stems = [name for name in MODULES if name.startswith("minillm.reference")]
    program = f"import sys, {', '.join(stems)}; print(sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = _run(program)
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert "numpy" in loaded
    assert not loaded & {"torch", "jaxtyping", "einops", "tokenizers", "beartype"}


def test_every_module_imports_with_the_core_dependencies_alone():
    """What an extra would bring is refused, as if it were not installed."""
    modules = [name for name in MODULES if not name.startswith("minillm.kernels.")]
    done = _run(f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            caller = sys._getframe(1)
            while caller.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
                caller = caller.f_back
            if caller.f_globals.get("__name__", "").startswith("minillm"):
                raise ModuleNotFoundError(f"No module named {{name!r}}, which only an extra brings", name=name)

sys.meta_path.insert(0, Missing())
import importlib
for module in {modules}:
    importlib.import_module(module)
""")
    assert done.returncode == 0, done.stderr


def test_importing_minillm_imports_no_torch():
    done = _run("import sys, minillm; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False"
