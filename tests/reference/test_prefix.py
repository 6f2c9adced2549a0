"""The MLP of a prefix in numpy: against central differences, and against the torch one."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from torch.func import functional_call

from minillm.adapt import PrefixTuning
from minillm.lab.trust import Case, against_numpy, differences
from minillm.reference.prefix import prefix_backward, prefix_forward
from minillm.reference.tower import KeyValues
from tests.decoders import STYLES, random_decoder
from tests.strategies import randoms, sizes
from tests.tolerances import assert_good


def numpys_names(mlp):
    """The MLP's parameters: numpy calls `inner.weight` inner_weight."""
    return [(name.replace(".", "_"), parameter) for name, parameter in mlp.named_parameters()]


@given(sizes, sizes, sizes, randoms)
def test_the_gradients_of_the_mlp_equal_differences_and_torchs(length, layers, groups, random):
    config = replace(STYLES["Llama"], layers=layers, width=4 * groups, heads=groups, kv_heads=groups)
    mlp = PrefixTuning(random_decoder(config), length, hidden=7).mlp
    names = [name for name, _ in mlp.named_parameters()]

    def forward(inputs):
        found, cache = prefix_forward(**inputs, layers=layers, groups=groups)
        return np.stack(found.sides[:2])[:, :, 0], cache

    def backward(dout, cache):
        return prefix_backward(KeyValues(*dout[:, :, None]), cache)

    def run(inputs, dtype, device):
        return torch.stack(functional_call(mlp, dict(zip(names, inputs.values(), strict=True)), ()))

    inputs = {name: random.normal(size=parameter.shape) for name, parameter in numpys_names(mlp)}
    case = Case("the MLP", inputs, forward, backward, run)
    assert backward(forward(inputs)[0], forward(inputs)[1]).keys() == inputs.keys()
    assert_good(differences(case, random), "numpy vs differences, float64")
    assert_good(against_numpy(case, random), "numpy vs torch, float64")
