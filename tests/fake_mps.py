"""A device that behaves as MPS does, on a machine without one: its tensors have the device mps, and the CPU computes.

As on MPS, these raise: float64 and complex128, operations for which torch lists no kernel for MPS, and operations with
tensors of two devices.
"""

import functools
from importlib.resources import files

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, CPU = torch.device("mps", 0), torch.device("cpu")
REFUSED = (torch.float64, torch.complex128)
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
)
"""Operations whose indices may be on the CPU."""


@functools.cache
def without_kernel():
    """The operations that have kernels of their own for some devices, and none for MPS, by torch's list."""
    listed = files("torchgen").joinpath("packaged/ATen/native/native_functions.yaml").read_text("utf-8")
    devices, delegates = {}, {}
    for entry in listed.split("\n- func: ")[1:]:
        name, lines = entry[: entry.index("(")], entry.splitlines()[1:]
        keys = [line.partition(":")[0] for line in lines if line.startswith("    ") and ":" in line]
        devices[name] = {device.strip() for key in keys for device in key.split(",")}
        delegates[name] = next((line.split()[1] for line in lines if line.startswith("  structured_delegate:")), name)
    found = {name: devices[delegates[name]] for name in devices}
    anywhere = {"MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd"}
    anywhere |= {"CompositeExplicitAutogradNonFunctional"}
    return {name for name, kernels in found.items() if kernels and not kernels & anywhere}


class OnMPS(torch.Tensor):
    """A tensor on MPS. Torch itself takes it for one on its device `meta`, and Python for one on `mps`."""

    device = property(lambda self: MPS)

    @staticmethod
    def __new__(cls, on_cpu):
        refuse(on_cpu.dtype)
        return torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(), dtype=on_cpu.dtype,
            device="meta",
        )  # fmt: skip

    def __init__(self, on_cpu):
        self.on_cpu = on_cpu

    def tolist(self):
        return self.on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def refuse(dtype):
    if dtype in REFUSED:
        raise TypeError(f"Cannot convert a MPS Tensor to {dtype} dtype as the MPS framework doesn't support it")


def compute(operation, args, kwargs):
    """The result of an operation on the CPU, on MPS if its tensors are there or it is asked for one there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    # Torch makes a list of indices into a tensor of its own on `meta`, which has no data.
    assert not any(tensor.is_meta and not isinstance(tensor, OnMPS) for tensor in tensors), operation
    here, name = [tensor for tensor in tensors if isinstance(tensor, OnMPS)], operation.name().removeprefix("aten::")
    asked = kwargs.get("device")
    on_mps = bool(here) if asked is None else torch.device(asked).type != "cpu"
    if here or on_mps:
        check(operation, name, tensors, on_mps, kwargs.get("dtype"))
    if asked is not None:
        kwargs = kwargs | {"device": CPU}
    given, options = tree_map(lambda leaf: getattr(leaf, "on_cpu", leaf), (args, kwargs))
    out = operation(*given, **options)
    if not on_mps:
        return out
    same = {id(tensor.on_cpu): tensor for tensor in here}
    placed = lambda leaf: same[id(leaf)] if id(leaf) in same else OnMPS(leaf)  # noqa: E731
    return tree_map(lambda leaf: placed(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)


def check(operation, name, tensors, on_mps, dtype):
    if name in without_kernel():
        raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
    if on_mps:
        refuse(dtype)
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnMPS) and tensor.dim()]
    for tensor in elsewhere if operation in COPIES else ():
        refuse(tensor.dtype)
    if elsewhere and operation not in (*COPIES, *INDEXED):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found mps:0 and cpu")


class FakeMPS(TorchDispatchMode):
    """A context in which tensors can be moved to and created on `MPS`."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # to skip it, torch would import its compiler

    def __enter__(self):
        # As torch does for its own fake tensors: `torch.tensor` makes one on the CPU first.
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_swap_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *raised):
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(False)
        return super().__exit__(*raised)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})
