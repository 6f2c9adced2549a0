"""A training step in numpy alone: the reference's forward, backward, clipping and AdamW, in float64.

The loop, the rows and the schedule are those of training in torch, but no arithmetic is shared. The losses agree to the
last digits of float64; a step takes about three times as long.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from minillm.data.batches import pad_right
from minillm.decoder import Decoder
from minillm.reference.adamw import Moments, adamw_step, clip_by_global_norm, no_moments
from minillm.reference.linear_cross_entropy import IGNORED
from minillm.reference.training import language_model_loss
from minillm.training.pretraining import PackedRow
from minillm.training.schedule import TrainingSettings


class NumpyLearner:
    """All weights of a decoder in float64, updated by numpy.

    The arrays share the decoder's memory, so torch can evaluate and save the decoder at any time.
    """

    def __init__(self, decoder: Decoder, settings: TrainingSettings):
        self.config, self.settings = decoder.config, settings
        self.weights = {name: parameter.detach().numpy() for name, parameter in decoder.double().named_parameters()}
        self.moments = no_moments(self.weights)
        self.gradients: dict[str, np.ndarray] = {}

    def backward(self, batches: Sequence[Sequence[PackedRow]]) -> float:
        rows = [row for batch in batches for row in batch]
        ids_BT = pad_right([row.ids for row in rows])[0].numpy()
        labels_BT = pad_right([row.labels for row in rows], IGNORED)[0].numpy()
        loss, gradients = language_model_loss(self.weights, self.config, ids_BT[:, :-1], labels_BT[:, 1:])
        self.gradients = gradients["weights"]
        return float(loss)

    def optimizer_step(self, rate: float) -> None:
        clipped, _ = clip_by_global_norm(self.gradients, self.settings.clip)
        betas, decay = (0.9, self.settings.beta2), self.settings.weight_decay
        updated, self.moments = adamw_step(self.weights, clipped, self.moments, rate=rate, betas=betas, decay=decay)
        self._copy(updated)

    def _copy(self, weights: Mapping[str, np.ndarray]) -> None:
        for name, weight in self.weights.items():
            weight[...] = weights[name]

    def state(self) -> dict[str, Tensor]:
        kinds = {"parameter": self.weights, "mean": self.moments.mean, "square": self.moments.square}
        arrays = {f"{kind}.{name}": array for kind, named in kinds.items() for name, array in named.items()}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors | {"steps": torch.tensor(self.moments.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        parameters, mean, square = (
            {name: tensors[f"{kind}.{name}"].numpy() for name in self.weights}
            for kind in ("parameter", "mean", "square")
        )
        self._copy(parameters)
        self.moments = Moments(mean, square, int(tensors["steps"]))
