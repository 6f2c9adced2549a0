"""AdamW and clipping in numpy equal torch's."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference.adamw import adamw_step, clip_by_global_norm, no_moments
from tests.strategies import randoms
from tests.tolerances import assert_close

settings = {"rate": st.sampled_from((1e-3, 0.1)), "decay": st.sampled_from((0.0, 0.3))}
betas = st.sampled_from(((0.9, 0.999), (0.5, 0.8)))


@given(**settings, betas=betas, random=randoms)
def test_seven_steps_equal_torchs_with_decay_on_matrices_only(rate, decay, betas, random):
    parameters = {name: random.normal(size=shape) for name, shape in (("matrix", (3, 5)), ("vector", (7,)))}
    tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in parameters.items()}
    groups = [
        {"params": [tensors["matrix"]], "weight_decay": decay},
        {"params": [tensors["vector"]], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas)
    moments = no_moments(parameters)
    for _ in range(7):
        gradients = {name: random.normal(size=array.shape) for name, array in parameters.items()}
        parameters, moments = adamw_step(parameters, gradients, moments, rate=rate, betas=betas, decay=decay)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradients[name])
        optimizer.step()
        for name, tensor in tensors.items():
            assert_close(tensor, parameters[name], "law")


@given(randoms, st.sampled_from((0.1, 1.0, 100.0)))
def test_clipping_equals_torchs(random, maximum):
    gradients = {name: random.normal(size=shape) for name, shape in (("matrix", (3, 5)), ("vector", (7,)))}
    tensors = [torch.zeros(gradient.shape).double() for gradient in gradients.values()]
    for tensor, gradient in zip(tensors, gradients.values(), strict=True):
        tensor.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_(tensors, maximum)
    clipped, norm = clip_by_global_norm(gradients, maximum)
    assert_close(norm, expected, "law")
    for tensor, gradient in zip(tensors, clipped.values(), strict=True):
        assert_close(gradient, tensor.grad, "law")
