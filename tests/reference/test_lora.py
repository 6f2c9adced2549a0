"""LoRA in numpy."""

from hypothesis import given

from minillm.reference.linear import linear_forward
from minillm.reference.lora import lora_forward
from minillm.reference.lora_by_row import lora_by_row_forward
from tests.strategies import arguments
from tests.tolerances import assert_close


@given(arguments("lora"))
def test_lora_equals_the_linear_with_the_merged_matrix(given):
    given.pop("dropped", None)
    merged = given["weight"] + given["scale"] * given["b"] @ given["a"]
    expected, _ = linear_forward(given["x"], merged, given["bias"])
    assert_close(lora_forward(**given)[0], expected, "law", terms=sum(given["a"].shape))


@given(arguments("lora_by_row"))
def test_each_row_equals_lora_with_its_own_adapter(given):
    out, _ = lora_by_row_forward(**given)
    x, weight, bias = given["x"], given["weight"], given["bias"]
    for row, member in enumerate(given["adapter"]):
        alone, _ = linear_forward(x[row], weight, bias)
        if member >= 0:
            alone, _ = lora_forward(x[row], weight, bias, given["a"][member], given["b"][member], 1)
        assert_close(out[row], alone, "law", terms=sum(given["a"].shape[1:]))
