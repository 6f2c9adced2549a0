"""The effect of an adapter on its base, measured: the norm of each dW, and the change of the logits of a probe.

The probe is a row of token ids, the same for every adapter of a base. An adapter that changes none of its logits, bit
for bit, has no effect.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minillm.adapt.low_rank import adapted_matrices
from minillm.adapt.method import Adaptation, Method
from minillm.adapt.surgery import frozen, linears
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.device import autocast
from minillm.shapes import Int

PROBE_TOKENS = 16


def probe(decoder: Decoder, room: int) -> Int[Tensor, "1 T"]:
    """Ids spread over the vocabulary. Raises InputError where there is no room for a token."""
    if room < 1:
        raise InputError("the adapter's prefix leaves no room in the context for a text")
    places = torch.arange(min(PROBE_TOKENS, room), device=decoder.embed.weight.device)
    return (places * 7919 + 1)[None] % decoder.config.vocabulary


class Effect(NamedTuple):
    """The largest change of a logit of the probe; for a classifier, the largest difference of two classes' logits."""

    size: float
    classifies: bool


@torch.no_grad()
def effect(method: Adaptation, decoder: Decoder) -> Effect:
    """The adapter's effect on the probe. Raises InputError for an adapter that leaves it no room in the context."""
    matrix = next(iter(linears(decoder).values())).weight
    with autocast(matrix.device, "bfloat16" if matrix.dtype == torch.bfloat16 else "float32"):
        prompt = method.prefix() if isinstance(method, Method) else None
        ids = probe(decoder, decoder.config.context_length - (0 if prompt is None else len(prompt)))
        adapted = method(ids).cpu().double()
        if adapted.dim() == 2:
            return Effect((adapted.amax(-1) - adapted.amin(-1)).max().item(), True)
        return Effect((adapted - frozen(decoder).eval()(ids).cpu()).abs().max().item(), False)


@torch.no_grad()
def update_norms(method: Adaptation) -> dict[str, float]:
    """The Frobenius norm of each dW: low-rank updates by the path of their matrix, trained copies by parameter name."""
    norms = {path: matrix.change().norm().item() for path, matrix in adapted_matrices(method.decoder).items()}
    for name, tensor in method.state().items():
        base = method.base.get(name)
        if base is not None and base.shape == tensor.shape and name.rpartition(".")[0] not in norms:
            wide = torch.promote_types(tensor.dtype, torch.float32)
            norms[name] = (tensor.to(wide) - base.to(tensor.device, wide)).norm().item()
    return norms


def report(method: Adaptation, found: Effect) -> str:
    """One line: the method and its options, its size, the size of dW and the effect on the probe."""
    options = {name: value for name, value in method.options().items() if value not in (None, False, 0, {}, [])}
    parts = [f"{type(method).__name__} ({', '.join(f'{name} {_short(value)}' for name, value in options.items())})"]
    parts.append(f"{sum(tensor.numel() for tensor in method.state().values()):,} parameters")
    if norms := update_norms(method):
        parts.append(f"Frobenius norm of dW: {_listed(norms)}")
    what = "largest difference of the classes' logits" if found.classifies else "largest change of a logit"
    return "; ".join([*parts, f"{what} on a probe of {PROBE_TOKENS} tokens: {found.size:.3g}"])


def _listed(norms: dict[str, float]) -> str:
    """The smallest and the largest norm of each role."""
    roles: dict[str, list[float]] = {}
    for path, norm in norms.items():
        roles.setdefault(".".join(part for part in path.split(".") if not part.isdigit()), []).append(norm)
    spans = {
        role: f"{min(each):.3g}" + (f" to {max(each):.3g}" if len(each) > 1 else "") for role, each in roles.items()
    }
    return ", ".join(f"{role} {span}" for role, span in spans.items())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
