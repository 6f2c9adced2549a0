"""Softmax in torch."""

import numpy as np
import torch

from minillm.ops.softmax import log_softmax, softmax


def test_scores_of_a_thousand_do_not_overflow():
    scores = torch.tensor([1000.0, 1000.0, -1000.0], dtype=torch.float64)
    assert softmax(scores).tolist() == [0.5, 0.5, 0.0]
    assert np.allclose(log_softmax(scores), [-np.log(2), -np.log(2), -2000 - np.log(2)], rtol=1e-12)
