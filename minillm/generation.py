"""Generating text: decoding with a cache, greedily or by sampling.

The cache holds the keys and values of all tokens so far in each layer, so that a new token costs the forward pass of
one position. It is internal to this file. The `KeyValues` of a prompt belong to a method.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError, check_at_least, check_seed, check_temperature
from minillm.key_values import KeyValues
from minillm.operations import softmax
from minillm.shapes import Bool, Float, Int


@runtime_checkable
class LanguageModel(Protocol):
    """A model that generates and scores text: a Decoder, or a method that adapts one."""

    @property
    def decoder(self) -> Decoder: ...

    def prefix(self) -> KeyValues | None: ...


class GrowingLayer:
    """The keys and values of one layer, in memory that is allocated once for `capacity` positions."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0

    def extend(
        self, key: Float[Tensor, "B G T K"], value: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        rows, heads, tokens, width = key.shape
        if self.length == 0:
            self.key, self.value = (side.new_empty(rows, heads, self.capacity, width) for side in (key, value))
        start, self.length = self.length, self.length + tokens
        self.key[:, :, start : self.length] = key
        self.value[:, :, start : self.length] = value
        return self.key[:, :, : self.length], self.value[:, :, : self.length]


def next_token_distribution(
    logits: Float[Tensor, "B V"], temperature: float, top_k: int | None, top_p: float | None
) -> Float[Tensor, "B V"]:
    """softmax(logits / temperature), restricted to the `top_k` most likely tokens and to the smallest set of tokens
    with a total probability of at least `top_p`."""
    if top_k is not None:
        most_likely = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(-1, most_likely.indices, most_likely.values)
    # The largest logit becomes 0, so that a quotient by a very small temperature is 0 or -inf, never NaN.
    highest = logits.amax(-1, keepdim=True)
    probabilities = softmax((logits - highest) / max(temperature, torch.finfo(logits.dtype).tiny))
    if top_p is None:
        return probabilities
    ordered, indices = probabilities.sort(descending=True, stable=True)
    # A token remains if the more likely ones sum to less than top_p; the token that reaches top_p remains too.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    remaining = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
    return remaining / remaining.sum(-1, keepdim=True)


def stream(
    model: LanguageModel, ids: Int[Tensor, "B T"], *, max_new_tokens: int, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, seed: int | None = None, stop: Iterable[int] = (),
    mask: Bool[Tensor, "B T"] | None = None,
) -> Iterator[Int[Tensor, "B"]]:  # fmt: skip
    """The next token of each row, one step at a time, until all rows have ended or `max_new_tokens` are generated.

    A temperature of 0 is greedy decoding. Rows of unequal length are padded on the left (`pad_left`) and need a mask.
    A row that has ended repeats its stop token. Raises InputError on the call, before the first token, also for a
    prefix, prompt and new tokens that exceed the context.
    """
    with torch.no_grad():
        prefix = model.prefix()
    length = 0 if prefix is None else len(prefix)
    _check(model.decoder.config, ids, length, max_new_tokens, temperature, top_k, top_p, seed)

    @torch.no_grad()
    def steps(ids: Tensor, mask: Tensor | None) -> Iterator[Int[Tensor, "B"]]:
        generator = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
        decoder, stops = model.decoder, torch.tensor(sorted(stop), device=ids.device, dtype=ids.dtype)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        cache = [GrowingLayer(ids.shape[1] + max_new_tokens) for _ in range(decoder.config.layers)]
        token = ids[:, :0]
        for _ in range(max_new_tokens):
            logits = decoder.head(decoder.features(ids, prefix=prefix, mask=mask, cache=cache)[:, -1])
            if temperature == 0:
                new = logits.argmax(-1)
            else:
                probabilities = next_token_distribution(logits, temperature, top_k, top_p)
                new = probabilities.multinomial(1, generator=generator)[:, 0]
            token = torch.where(ended, token, new) if ended.any() else new
            ended = ended | torch.isin(token, stops)
            mask = None if mask is None else F.pad(mask, (0, 1), value=True)
            ids = token[:, None]
            yield token
            if ended.all():
                return

    return steps(ids, mask)


def generate(
    model: LanguageModel, ids: Int[Tensor, "B T"], *, max_new_tokens: int, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, seed: int | None = None, stop: Iterable[int] = (),
    mask: Bool[Tensor, "B T"] | None = None,
) -> Int[Tensor, "B S"]:  # fmt: skip
    """The prompt followed by the tokens of `stream`. The model runs in eval mode; its mode is then restored."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        new = list(
            stream(
                model, ids, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                seed=seed, stop=stop, mask=mask,
            )
        )  # fmt: skip
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    return torch.cat((ids, torch.stack(new, 1)), 1)


def _check(
    config: DecoderConfig, ids: Tensor, prefix: int, new: int, temperature: float, top_k: int | None,
    top_p: float | None, seed: int | None,
) -> None:  # fmt: skip
    if ids.shape[1] == 0:
        raise InputError("the prompt has no tokens; give at least one")
    if not 0 <= int(ids.min()) <= (largest := int(ids.max())) < config.vocabulary:
        raise InputError(f"ids must be from 0 to {config.vocabulary - 1}, got {int(ids.min())} to {largest}")
    check_at_least(1, max_new_tokens=new, top_k=top_k)
    if prefix + ids.shape[1] + new > config.context_length:
        before = f"prefix ({prefix}), " if prefix else ""
        raise InputError(
            f"{before}prompt ({ids.shape[1]}) and max_new_tokens ({new}) exceed the context length "
            f"{config.context_length}"
        )
    check_temperature(temperature)
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be in (0, 1], got {top_p}")
    if seed is not None:
        check_seed(seed)
