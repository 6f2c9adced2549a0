"""The two lower rungs of the ladder of trust, for any operation: differences to numpy, and numpy to torch."""

import numpy as np
import torch

from minillm.ops import attention as ops
from minillm.reference import attention as reference
from tests.tolerances import assert_close

STEP = 1e-5


def slope_by_differences(loss, array):
    """d loss() / d array, a central difference for each of its numbers, which are moved in place."""
    slope = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + STEP
        above = loss()
        array[place] = kept - STEP
        slope[place] = (above - loss()) / (2 * STEP)
        array[place] = kept
    return slope


def slope_along(loss, arrays, directions):
    """d loss() / dh as all arrays move along, in place; of fourth order, for many numbers move at once."""
    starts = [array.copy() for array in arrays]

    def loss_at(step):
        for array, start, direction in zip(arrays, starts, directions, strict=True):
            array[...] = start + step * direction
        return loss()

    near, far = (loss_at(reach * STEP) - loss_at(-reach * STEP) for reach in (1, 2))
    loss_at(0.0)
    return (8 * near - far) / (12 * STEP)


def check_gradient_by_differences(forward, backward, inputs, random):
    """`inputs` by name; those that `backward` answers for are moved number by number."""
    out, cache = forward(**inputs)
    dout = random.normal(size=np.shape(out))
    gradients = backward(dout, cache)
    assert gradients
    for name, gradient in gradients.items():
        parts = zip(inputs[name], gradient, strict=True) if isinstance(gradient, tuple) else [(inputs[name], gradient)]
        for array, slope in parts:
            if array is not None:
                expected = slope_by_differences(lambda: (forward(**inputs)[0] * dout).sum(), array)
                assert_close(slope, expected, "difference", f"the gradient of {name}")


def check_against_torch(operation, forward, backward, inputs, random, constants=()):
    """Output and gradients of a torch operation and of its numpy twin; torch gives `constants` no gradient."""
    out, cache = forward(**inputs)
    tensors = {name: to_torch(value) for name, value in inputs.items()}
    actual = operation(**tensors)
    assert actual.dtype == torch.float64
    assert_close(actual, out, what="the output")
    dout = random.normal(size=np.shape(out))
    actual.backward(torch.from_numpy(np.asarray(dout)))
    for name, gradient in backward(dout, cache).items():
        if name in constants:
            continue
        parts = (
            zip(tensors[name], gradient, strict=True) if isinstance(gradient, tuple) else [(tensors[name], gradient)]
        )
        for tensor, slope in parts:
            if tensor is not None:
                assert_close(tensor.grad, slope, what=f"the gradient of {name}")


def to_torch(value):
    """Arrays as tensors that want a gradient if they are of floats; named tuples part by part."""
    if isinstance(value, reference.Prefix):
        return ops.Prefix(*(to_torch(side) for side in value))
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value.copy())
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor
    return value
