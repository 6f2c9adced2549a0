"""An operation has the same name and arguments in reference, ops, fast and kernels; shapes use the dimension key."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import minillm
from minillm import operations, shapes

HOME = Path(minillm.__file__).parent

# Arguments that the numpy reference does not have: one device, one dtype, no random numbers.
TORCH_ALONE = {"device", "dtype", "dropout_probability"}
# Not differentiable, so numpy has one function instead of a forward and a backward one.
WITHOUT_GRADIENT = {"visible_keys", "token_positions", "sinusoidal", "rotary_tables"}


def _stems(folder):
    return sorted(path.stem for path in (HOME / folder).glob("*.py") if not path.stem.startswith("_"))


def _public_functions(folder, stem):
    module = importlib.import_module(f"minillm.{folder}.{stem}")
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}


FILE_OF = {name: stem for stem in _stems("ops") for name in _public_functions("ops", stem)}
OPERATIONS = sorted(set(operations.__all__) & FILE_OF.keys())


def _parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in TORCH_ALONE]


def test_every_file_of_fast_has_one_in_ops_and_every_file_of_ops_one_in_reference():
    # A copy of a decoder is not an operation.
    assert set(_stems("fast")) - {"decoding"} <= set(_stems("ops")) <= set(_stems("reference"))
    assert len(OPERATIONS) >= 15
    assert not [name for name in _stems("ops") if name not in {FILE_OF[operation] for operation in OPERATIONS}]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_implementation_of_an_operation_has_the_same_arguments(name):
    stem = FILE_OF[name]
    formula, references = _public_functions("ops", stem)[name], _public_functions("reference", stem)
    reference = references[name] if name in WITHOUT_GRADIENT else references[f"{name}_forward"]
    assert _parameters(reference) == _parameters(formula)
    fast = [_public_functions("fast", stem)[name]] if name in _defined_in("fast", stem) else []
    for implementation in (getattr(operations, name), *fast):
        assert _arguments(implementation) == _arguments(formula)


def _arguments(function):
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("stem", _stems("reference"))
def test_every_forward_function_of_the_reference_has_a_backward_function(stem):
    functions = _public_functions("reference", stem)
    for name in functions:
        if name.endswith("_forward"):
            assert f"{name.removesuffix('_forward')}_backward" in functions
        if name.endswith("_backward"):
            assert f"{name.removesuffix('_backward')}_forward" in functions
            assert list(inspect.signature(functions[name]).parameters)[:2] == ["dout", "cache"]


def test_the_reference_has_the_same_data_structures_and_the_same_ignored_label():
    module = importlib.import_module
    assert module("minillm.ops.attention").Prefix._fields == module("minillm.reference.attention").Prefix._fields
    parameters = inspect.signature(module("minillm.key_values").KeyValues).parameters
    assert tuple(parameters) == module("minillm.reference.tower").KeyValues._fields
    losses = (module(f"minillm.{folder}.linear_cross_entropy") for folder in ("ops", "reference"))
    assert len({loss.IGNORED for loss in losses}) == 1


def _defined_in(folder, stem):
    """Public functions and their arguments, from the source: kernels cannot be imported without triton."""
    path = HOME / folder / f"{stem}.py"
    source = path.read_text("utf-8") if path.exists() else ""
    return dict(re.findall(r"^def ([a-z]\w*)\(((?:[^()]|\([^()]*\))*)\)", source, re.M))


@pytest.mark.parametrize("stem", _stems("kernels"))
def test_a_kernel_has_the_name_and_arguments_of_its_operation(stem):
    assert stem in _stems("ops")
    formulas = _public_functions("ops", stem)
    kernels = {name for name in _defined_in("kernels", stem) if name in formulas}
    assert kernels, f"kernels/{stem}.py has no function of ops/{stem}.py: {', '.join(formulas)}"
    for name in kernels:
        arguments = [part.split(":")[0].strip() for part in _defined_in("kernels", stem)[name].split(",")]
        assert [argument for argument in arguments if argument in inspect.signature(formulas[name]).parameters]


@pytest.mark.parametrize("stem", _stems("reference"))
def test_a_file_of_the_reference_is_short_and_begins_with_a_docstring(stem):
    text = (HOME / "reference" / f"{stem}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert text.startswith('"""')


def _signature_letters():
    for path in HOME.rglob("*.py"):
        for shape in re.findall(r"(?:Float|Int|Bool|Mask)\[[^\"\]]*\"([^\"]*)\"\]", path.read_text()):
            yield from ((path.name, part) for part in shape.split())


def test_signatures_use_only_letters_of_the_dimension_key():
    letters = list(_signature_letters())
    assert len(letters) > 100
    for file, part in letters:
        plain = re.sub(r"\{\w+\}|[*#_/+\d]", "", part)
        assert plain == "" or plain in shapes.DIMENSIONS, f"{file}: {part}"


def test_numpy_suffixes_use_only_letters_of_the_dimension_key():
    suffixes = set()
    for path in (HOME / "reference").glob("*.py"):
        suffixes |= set(re.findall(r"\b[a-z]\w*_([A-Z1]+)\b", path.read_text()))
    assert {"BHTS", "BTD", "NV"} <= suffixes
    assert set("".join(suffixes)) <= shapes.DIMENSIONS.keys() | {"1"}
