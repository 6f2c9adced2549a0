"""Input embedding (figure 1, bottom): a table's row for each token, or for each learned position.

    x_bt = W[id_bt]

Gradient. It is a Linear on one-hot vectors, so a row of W collects the slopes of every place that read it, and a
token that occurs twice adds twice. (`dweight[ids] += dout` would keep only the last of them.) Ids have no slope.
"""

import numpy as np


def embedding_forward(ids, weight):
    return weight[ids], (ids, weight.shape)


def embedding_backward(dout, cache):
    ids, shape = cache
    dweight_VD = np.zeros(shape)
    np.add.at(dweight_VD, ids, dout)
    return {"weight": dweight_VD}
