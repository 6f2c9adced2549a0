"""Input embedding (figure 1, bottom): the rows `ids` of a table, of tokens or of learned positions (GPT-2)."""

import torch.nn.functional as F
from torch import Tensor

from minillm.shapes import Float, Int


def embedding(ids: Int[Tensor, "*B T"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "*B T D"]:
    """The vector of each id: out[b, t] = weight[ids[b, t]]."""
    return F.embedding(ids, weight)
