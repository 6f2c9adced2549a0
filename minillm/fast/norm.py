"""Layer norm by torch's fused kernel: one pass over memory instead of the six of the formula."""

import torch.nn.functional as F
from torch import Tensor


def layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(hidden, weight.shape, weight, bias, eps)
