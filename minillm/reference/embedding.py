"""Input embedding (figure 1, bottom): a table's row for each token, or for each learned position.

    x_bt = W[id_bt]

Gradient. The layer is a Linear on one-hot vectors, so a row of W sums the gradients of all its uses: a token that
occurs twice contributes twice. (`dweight[ids] += dout` would keep only the last one.) Ids have no gradient.
"""

import numpy as np


def embedding_forward(ids, weight):
    return weight[ids], (ids, weight.shape)


def embedding_backward(dout, cache):
    ids, shape = cache
    dweight_VD = np.zeros(shape)
    np.add.at(dweight_VD, ids, dout)
    return {"weight": dweight_VD}
