"""A tuned prefix computed by an MLP: stabler training in Li & Liang 2021 (section 4.3), no gain in our measurement.

    keys and values = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂

E has a row of width D for each of P positions; W₂ outputs the keys and values of a position in all layers, in the order
layer, key or value, head. The MLP does not depend on the text, so it runs on one row; after training its output is
saved and the MLP is dropped. The same in numpy, with its gradients: `reference/prefix.py`.

Each output is a sum over all hidden units, and Adam moves each weight by the learning rate: at the same rate, a step
changes keys and values about hidden / 2 times as much as without the MLP. With 512 units 5e-5, the paper's rate,
corresponds to 1e-2. On SmolLM2 and 500 reviews, 512 units at 5e-5 reach a validation accuracy of 82 % after one epoch
(without the MLP at 1e-2: 82 % too) and at 3e-4 51 %. So use `hidden` only if training without it is unstable.
"""

from contextlib import nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.runtime.device import decomposable
from minillm.shapes import Float


class Reparametrisation(nn.Module):
    """The MLP of `hidden` units from E to the keys and values; at the start it outputs the given ones.

    Raises InputError for fewer units than positions, which cannot represent them all.
    """

    def __init__(self, width: int, keys: Float[Tensor, "L G P K"], values: Float[Tensor, "L G P K"], hidden: int):
        super().__init__()
        length = keys.shape[2]
        if hidden < length:
            raise InputError(f"hidden must be at least the length, {length}, got {hidden}")
        self.layers, self.head_width = len(keys), keys.shape[-1]
        written = 2 * keys[:, :, 0].numel()
        place = {"device": keys.device, "dtype": keys.dtype}
        self.embeddings = nn.Parameter(torch.randn(length, width, **place))
        self.inner = nn.Linear(width, hidden, **place)
        self.outer = nn.Linear(hidden, written, **place)
        self._fit(rearrange(torch.stack((keys, values)), "side L G P K -> P (L side G K)"))

    def forward(self) -> tuple[Float[Tensor, "L G P K"], Float[Tensor, "L G P K"]]:
        # In full precision, also under autocast, so that the keys used in training are those that are saved.
        kind = self.embeddings.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            written = self.outer(self.inner(self.embeddings).tanh())
        sides = rearrange(written, "P (L side G K) -> side L G P K", side=2, L=self.layers, K=self.head_width)
        return sides[0].contiguous(), sides[1].contiguous()

    @torch.no_grad()
    def _fit(self, target: Float[Tensor, "P O"]) -> None:
        """The smallest W₂ that outputs `target`: with tanh(E W₁ᵀ + b₁) = Rᵀ Qᵀ, W₂ᵀ = Q R⁻ᵀ target, and b₂ = 0."""
        q, r = torch.linalg.qr(decomposable(self.inner(self.embeddings).tanh().T))
        self.outer.weight.copy_((q @ torch.linalg.solve_triangular(r.T, decomposable(target), upper=False)).T)
        self.outer.bias.zero_()
