"""NaN and infinite values are found, and large finite ones are not taken for them."""

import pytest
import torch

from minillm.runtime.finite import is_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_one_value_that_is_not_finite_is_found_anywhere(dtype):
    largest = torch.finfo(dtype).max
    for values in ([], [0.0], [largest] * 3, [largest, -largest, largest], [-largest] * 70_000):
        tensor = torch.tensor(values, dtype=dtype)
        assert is_finite(tensor)
        for wrong in (torch.nan, torch.inf, -torch.inf):
            for place in {0, len(values) // 2, len(values)}:
                assert not is_finite(torch.cat([tensor[:place], tensor.new_tensor([wrong]), tensor[place:]]))
    assert not is_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))
