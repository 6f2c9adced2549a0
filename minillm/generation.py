"""Generating text: decoding with a cache, greedily or by sampling.

The cache holds the keys and values of all tokens so far in each layer, so that a new token costs the forward pass of
one position. The `KeyValues` of a prompt belong to a method.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError, check_at_least, check_seed, check_temperature
from minillm.fast.decoding import prepare
from minillm.key_values import KeyValues
from minillm.operations import FAST, current_backend, softmax
from minillm.shapes import Bool, Float, Int


@runtime_checkable
class LanguageModel(Protocol):
    """A model that generates and scores text: a Decoder, or a method that adapts one."""

    @property
    def decoder(self) -> Decoder: ...

    def prefix(self) -> KeyValues | None: ...


class GrowingLayer:
    """The keys and values of one layer, in memory for at least `capacity` positions; it doubles when it is full."""

    def __init__(self, capacity: int = 0):
        self.capacity, self.length = capacity, 0

    def extend(
        self, key: Float[Tensor, "B G T K"], value: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        start, end = self.length, self.length + key.shape[2]
        if start == 0 or end > self.memory[0].shape[2]:
            free = max(self.capacity, end, 2 * start) - start
            before = self.memory if start else (key, value)
            self.memory = [F.pad(side[:, :, :start], (0, 0, 0, free)) for side in before]
        self.length, (keys, values) = end, self.memory
        keys.narrow(2, start, end - start).copy_(key)
        values.narrow(2, start, end - start).copy_(value)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)


class DecodingCache:
    """The prefix of a model, and the keys and values of the tokens `ids` after it in every layer.

    Tokens of a forward pass that was interrupted are not in `ids`, and the next pass overwrites them.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, capacity: int = 0):
        self.decoder, self.prefix = model.decoder, model.prefix()
        self.layers = [GrowingLayer(capacity) for _ in range(self.decoder.config.layers)]
        self.ids = torch.empty(1, 0, dtype=torch.long, device=self.decoder.embed.weight.device)

    def rest(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B S"]:
        """The tokens to process next: those after the tokens `shared` with the cache, but at least one.

        The cache keeps only the shared ones.
        """
        count = min(self.ids.shape[1], ids.shape[1] - 1)
        self.shared = int((self.ids[:, :count] == ids[:, :count]).all(0).cumprod(0).sum())
        self.ids = ids[:, : self.shared]
        self._cut()
        return ids[:, self.shared :]

    def _cut(self) -> None:
        for layer in self.layers:
            layer.length = self.ids.shape[1]

    @torch.no_grad()
    def logits(
        self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B S"] | None, decoder: Decoder
    ) -> Float[Tensor, "B V"]:
        """The logits after the next tokens, which are added to the cache, by `fast.decoding.prepare(self.decoder)`."""
        logits = decoder.head(decoder.features(ids, prefix=self.prefix, mask=mask, cache=self.layers)[:, -1])
        if decoder is not self.decoder and not logits.sum().isfinite():  # a number exceeds float16
            self._cut()
            return self.logits(ids, mask, self.decoder)
        self.ids = torch.cat((self.ids, ids), 1)
        return logits


@dataclass(kw_only=True)
class GenerationOptions:
    """Options of the generated text."""

    max_new_tokens: int | None = None
    """The maximum number of tokens to generate: 100 if not given, in a conversation 500."""
    temperature: float = 0.0
    """The sampling temperature; 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens."""
    top_p: float | None = None
    """Sample from the most likely tokens whose probabilities sum to p."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        check_at_least(1, max_new_tokens=self.max_new_tokens, top_k=self.top_k)
        check_temperature(self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")


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
    mask: Bool[Tensor, "B T"] | None = None, cache: DecodingCache | None = None,
) -> Iterator[Int[Tensor, "B"]]:  # fmt: skip
    """The next token of each row, one step at a time, until all rows have ended or `max_new_tokens` are generated.

    A temperature of 0 is greedy decoding. Rows of unequal length are padded on the left (`pad_left`) and need a mask.
    A row that has ended repeats its stop token. With a `cache` of this model, only the tokens that it does not have yet
    are processed. Raises InputError on the call, before the first token, also for a prefix, prompt and new tokens that
    exceed the context.
    """
    GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p).check()
    cache = DecodingCache(model, ids.shape[1] + max_new_tokens) if cache is None else cache
    _check(model.decoder.config, ids, 0 if cache.prefix is None else len(cache.prefix), max_new_tokens, seed)

    def steps(ids: Tensor, mask: Tensor | None) -> Iterator[Int[Tensor, "B"]]:
        generator = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
        # A formula or a kernel that is forced is used in every step.
        decoder = prepare(model.decoder) if current_backend() in (None, FAST) else model.decoder
        stops = torch.tensor(sorted(stop), device=ids.device, dtype=ids.dtype)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        token, ids = ids[:, :0], cache.rest(ids)
        for _ in range(max_new_tokens):
            logits = cache.logits(ids, mask, decoder)
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


def _check(config: DecoderConfig, ids: Tensor, prefix: int, new: int, seed: int | None) -> None:
    if ids.shape[1] == 0:
        raise InputError("the prompt has no tokens; give at least one")
    if not 0 <= int(ids.min()) <= (largest := int(ids.max())) < config.vocabulary:
        raise InputError(f"ids must be from 0 to {config.vocabulary - 1}, got {int(ids.min())} to {largest}")
    if prefix + ids.shape[1] + new > config.context_length:
        before = f"prefix ({prefix}), " if prefix else ""
        raise InputError(
            f"{before}prompt ({ids.shape[1]}) and max_new_tokens ({new}) exceed the context length "
            f"{config.context_length}"
        )
    if seed is not None:
        check_seed(seed)
