"""A whole training step: forward, loss, backward, clipping, AdamW. The named parameters are trained.

    loss = -(1 / n) Σ log p(label)        the mean over all n labelled positions, in nats

Methods of adaptation differ in which parameters are trained and how they enter the decoder: full fine-tuning trains
all weights, partial fine-tuning some of them, a head its own matrix, LoRA the factors a and b, prefix tuning the keys
and values (or the MLP that computes them), a soft prompt the embeddings whose keys and values the text attends to. Each
is a function from parameters to (loss, gradients); the step is the same for all.
"""

from minillm.reference.adamw import adamw_step, clip_by_global_norm
from minillm.reference.decoder import features_backward, features_forward
from minillm.reference.linear_cross_entropy import IGNORED, linear_cross_entropy_backward, linear_cross_entropy_forward


def training_step(loss_and_gradients, parameters, moments, *, rate, decay=0.0, clip=1.0):
    """(loss before the step, new parameters, new moments)."""
    loss, gradients = loss_and_gradients(parameters)
    clipped, _ = clip_by_global_norm({name: gradients[name] for name in parameters}, clip)
    moved, moments = adamw_step(parameters, clipped, moments, rate=rate, decay=decay)
    return loss, moved, moments


def language_model_loss(weights, config, ids, labels, *, prefix=None, mask=None):
    """(mean loss, {"weights", "embeddings", "prefix": their gradients}). `labels` are B T, IGNORED where there is none.

    The gradient of a tied head is added to that of the embedding.
    """
    head = "embed.weight" if config.tie_embeddings else "head.weight"
    features_BTD, tower = features_forward(weights, config, ids, prefix=prefix, mask=mask)
    features_ND, labels_N = features_BTD.reshape(-1, config.width), labels.reshape(-1)
    total, cache = linear_cross_entropy_forward(features_ND, weights[head], labels_N)
    count = (labels != IGNORED).sum()
    through = linear_cross_entropy_backward(1 / count, cache)
    gradients = features_backward(through["hidden"].reshape(features_BTD.shape), tower)
    gradients["weights"][head] = gradients["weights"].get(head, 0.0) + through["weight"]
    return total / count, gradients
