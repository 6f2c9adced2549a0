"""Refusing NaN and infinite values, which a damaged file or a training that diverged has."""

from collections.abc import Mapping

from torch import Tensor

from minillm.errors import InputError


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. The sum is fast; it also overflows for finite values, which then are tested."""
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def check_finite(tensors: Mapping[str, Tensor], whose: str, hint: str = "the training diverged") -> None:
    """Raises InputError for NaN and infinite values, naming the tensor."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise InputError(f"{whose} has values in {name} that are not finite: {hint}"[:500])
