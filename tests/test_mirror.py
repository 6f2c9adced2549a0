"""The rooms mirror each other: an operation has one name and the same arguments in reference, ops, fast and kernels."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import minillm
from minillm import operations, shapes

HOME = Path(minillm.__file__).parent

# What numpy has no use for: it computes on one device, in one dtype, and draws no random numbers.
TORCH_ALONE = {"device", "dtype", "dropout_probability"}
# Differentiable in no argument: numpy needs no pair of functions for them.
WITHOUT_GRADIENT = {"visible_keys", "token_positions", "sinusoidal", "rotary_tables"}


def _stems(house):
    return sorted(path.stem for path in (HOME / house).glob("*.py") if not path.stem.startswith("_"))


def _public_functions(house, stem):
    module = importlib.import_module(f"minillm.{house}.{stem}")
    members = inspect.getmembers(module, inspect.isfunction)
    return {
        name: function
        for name, function in members
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


FILE_OF = {name: stem for stem in _stems("ops") for name in _public_functions("ops", stem)}
OPERATIONS = sorted(set(operations.__all__) & FILE_OF.keys())


def _parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in TORCH_ALONE]


def test_every_file_of_ops_and_fast_has_its_formula_and_its_reference():
    assert set(_stems("fast")) <= set(_stems("ops")) <= set(_stems("reference"))
    assert len(OPERATIONS) >= 15
    assert not [name for name in _stems("ops") if name not in {FILE_OF[operation] for operation in OPERATIONS}]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_implementation_of_an_operation_has_the_same_arguments(name):
    stem = FILE_OF[name]
    formula, references = _public_functions("ops", stem)[name], _public_functions("reference", stem)
    reference = references[name] if name in WITHOUT_GRADIENT else references[f"{name}_forward"]
    assert _parameters(reference) == _parameters(formula)
    for implementation in (getattr(operations, name), *_fast(stem, name)):
        assert _shape(implementation) == _shape(formula)


def _shape(function):
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


def _fast(stem, name):
    return [_public_functions("fast", stem)[name]] if name in _defined_in("fast", stem) else []


@pytest.mark.parametrize("stem", _stems("reference"))
def test_what_goes_forward_comes_back(stem):
    functions = _public_functions("reference", stem)
    for name in functions:
        if name.endswith("_forward"):
            assert f"{name.removesuffix('_forward')}_backward" in functions
        if name.endswith("_backward"):
            assert f"{name.removesuffix('_backward')}_forward" in functions
            assert list(inspect.signature(functions[name]).parameters)[:2] == ["dout", "cache"]


def test_a_prefix_has_the_same_parts_in_both():
    ops, reference = (importlib.import_module(f"minillm.{house}.attention") for house in ("ops", "reference"))
    assert ops.Prefix._fields == reference.Prefix._fields
    prompt, tower = importlib.import_module("minillm.key_values"), importlib.import_module("minillm.reference.tower")
    assert tuple(inspect.signature(prompt.KeyValues).parameters) == tower.KeyValues._fields


def test_unlabelled_positions_are_marked_alike():
    ops, reference = (
        importlib.import_module(f"minillm.{house}.linear_cross_entropy") for house in ("ops", "reference")
    )
    assert ops.IGNORED == reference.IGNORED


def _defined_in(house, stem):
    """Public functions of a file by their text: a kernel's file cannot be imported where there is no triton."""
    path = HOME / house / f"{stem}.py"
    source = path.read_text("utf-8") if path.exists() else ""
    return dict(re.findall(r"^def ([a-z]\w*)\(((?:[^()]|\([^()]*\))*)\)", source, re.M))


@pytest.mark.parametrize("stem", _stems("kernels") or [pytest.param(None, marks=pytest.mark.skip("no kernels yet"))])
def test_a_kernel_has_the_name_and_arguments_of_its_operation(stem):
    assert stem in _stems("ops")
    formulas = _public_functions("ops", stem)
    kernels = {name for name in _defined_in("kernels", stem) if name in formulas}
    assert kernels, f"kernels/{stem}.py has no function of ops/{stem}.py: {', '.join(formulas)}"
    for name in kernels:
        arguments = [part.split(":")[0].strip() for part in _defined_in("kernels", stem)[name].split(",")]
        assert [argument for argument in arguments if argument in inspect.signature(formulas[name]).parameters]


@pytest.mark.parametrize("stem", _stems("reference"))
def test_a_file_of_the_reference_is_short_and_opens_with_its_mathematics(stem):
    text = (HOME / "reference" / f"{stem}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert text.startswith('"""')


def _signature_letters():
    for path in HOME.rglob("*.py"):
        for shape in re.findall(r"(?:Float|Int|Bool)\[[^\"\]]*\"([^\"]*)\"\]", path.read_text()):
            yield from ((path.name, part) for part in shape.split())


def test_no_signature_uses_a_letter_that_the_key_does_not_have():
    letters = list(_signature_letters())
    assert len(letters) > 100
    for file, part in letters:
        plain = re.sub(r"\{\w+\}|[*#_/+\d]", "", part)
        assert plain == "" or plain in shapes.DIMENSIONS, f"{file}: {part}"


def test_no_numpy_name_carries_a_letter_that_the_key_does_not_have():
    suffixes = set()
    for path in (HOME / "reference").glob("*.py"):
        suffixes |= set(re.findall(r"\b[a-z]\w*_([A-Z1]+)\b", path.read_text()))
    assert {"BHTS", "BTD", "NV"} <= suffixes
    assert set("".join(suffixes)) <= shapes.DIMENSIONS.keys() | {"1"}
