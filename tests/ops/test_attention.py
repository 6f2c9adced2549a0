"""Which keys a query sees, as a literal."""

import numpy as np
import torch

from minillm.ops.attention import visible_keys
from minillm.reference.attention import visible_keys as numpy_visible_keys


def test_a_window_counts_real_tokens():
    """The last query sees two tokens, also where padding lies between them."""
    mask = np.array([[True, True, False, True]])
    by_torch = visible_keys(4, 4, torch.from_numpy(mask), torch.device("cpu"), window=2)
    for visible in (by_torch, numpy_visible_keys(4, 4, mask, 2)):
        assert visible[0, 0, -1].tolist() == [False, True, False, True]
