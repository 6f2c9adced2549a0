"""DoRA: directions and norms of a matrix's rows, trained separately."""

import pytest
import torch

from minillm import InputError
from minillm.adapt.dora import DoRA, DoRALinear
from minillm.adapt.low_rank import Update
from minillm.adapt.surgery import frozen
from minillm.adapters.merge import updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def formed(layer):
    """m (W + s B A) / |W + s B A|, written out."""
    turned = layer.weight + layer.scale * layer.b @ layer.a
    return layer.magnitude[:, None] * turned / turned.norm(dim=1, keepdim=True)


def test_output_and_gradients_are_those_of_the_formed_matrix():
    """Gradients include that of the norm, which the paper treats as a constant."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(7, 5).double().requires_grad_(False)
    layer = DoRALinear(linear, Update(2, 1.5, 0.0, False))
    torch.nn.init.normal_(layer.b)
    x = torch.randn(3, 7).double().requires_grad_()
    wanted = (x, layer.a, layer.b, layer.magnitude)
    expected = x @ formed(layer).T + linear.bias
    assert_close(layer(x), expected, "law")
    found = torch.autograd.grad(layer(x).square().sum(), wanted)
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(), wanted), strict=True):
        assert_close(one, other, "law")
    assert_close(linear.weight + layer.change(), formed(layer), "law")


def test_its_rows_have_the_trained_norms():
    method = moved(DoRA(random_decoder(STYLES["GPT-2"]), r=2, targets=("all-linear",)))
    for path, dw in updates(method).items():
        magnitude = method.state()[f"{path}.magnitude"]
        assert_close((method.decoder.get_submodule(path).weight + dw).norm(dim=1), magnitude.abs(), "law")


def test_norms_are_float32_where_matrices_are_in_half_precision():
    body = frozen(random_decoder(STYLES["Llama"]).float(), torch.bfloat16)
    method = DoRA(body, r=2, targets=("all-linear",))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method(IDS), body(IDS)), "each quotient of norms is exactly 1"
        method(IDS).float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in method.trainable().values()} == {torch.float32}


def test_an_embedding_table_is_not_a_target():
    with pytest.raises(InputError, match="DoRA target 'embed' matches nothing"):
        DoRA(random_decoder(STYLES["Llama"]), targets=("embed",))
