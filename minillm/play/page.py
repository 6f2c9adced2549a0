"""What the page shows: the answers to its requests, in JSON's types.

Nothing is stored for a client: the text, the adapter and its scale come with every request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.adapt.method import Adaptation, is_language_model
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.fast.decoding import prepare
from minillm.generation import DecodingCache, LanguageModel
from minillm.play.look import attention, hidden_states, lens
from minillm.play.scaled import ScaledMethod
from minillm.prompting.chat_session import ChatSession
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer

MOST_CHARACTERS, MOST_TOKENS, MOST_PASSES, LARGEST_SCALE, TOP, WIDE = 8000, 256, 4, 2, 10, 16


@dataclass(frozen=True, kw_only=True)
class View:
    """What a client looks at: a text, or messages to answer. `adapter` is an index, position -1 the last token, and a
    `wide` lens covers the 16 positions up to it. Raises InputError for a value of another type or out of range."""

    text: str = ""
    messages: list | None = None
    chat: bool = False
    adapter: int | None = None
    scale: float | int = 1
    layer: int = 0
    head: int = 0
    position: int = -1
    wide: bool = False

    def __post_init__(self):
        for name, kind in get_type_hints(View).items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} has the wrong type: {getattr(self, name)!r:.50}")
        if len(self.text) > MOST_CHARACTERS:
            raise InputError(f"the text may have {MOST_CHARACTERS} characters, got {len(self.text)}; shorten it")
        if not 0 <= self.scale <= LARGEST_SCALE:
            raise InputError(f"scale must be in [0, {LARGEST_SCALE}], got {self.scale}")


class Pass:
    """The forward pass over a text: hidden states, and log p of each token but the first.

    The next text costs only its tokens after the first one that differs.
    """

    def __init__(self, model: LanguageModel):
        self.cache, self.decoder, self.scores = DecodingCache(model), prepare(model.decoder), list[float]()
        config, weight = model.decoder.config, model.decoder.embed.weight
        self.states = weight.new_empty(config.layers + 1, 0, config.width)

    @torch.no_grad()
    def run(self, ids: list[int]) -> None:
        cache, row = self.cache, torch.tensor([ids], device=self.states.device)
        if row.shape == cache.ids.shape and bool((row == cache.ids).all()):
            return
        new = hidden_states(self.decoder, cache.rest(row), cache.prefix, cache.layers)
        if self.decoder is not cache.decoder and not new.sum().isfinite():  # a number exceeds float16
            self.decoder = cache.decoder
            new = hidden_states(self.decoder, cache.rest(row), cache.prefix, cache.layers)
        cache.ids, self.states = row, torch.cat((self.states[:, : cache.shared], new), 1)
        start = max(cache.shared - 1, 0)
        next_token = lens(self.decoder, self.states[-1:, start:])[0]
        self.scores[start:] = next_token[:-1].gather(-1, row[0, start + 1 :, None])[:, 0].tolist()


class Page:
    """A base with its tokenizer, and adapters by name. One call at a time: the server has a lock."""

    def __init__(self, name: str, base: Decoder, tokenizer: Tokenizer, adapters: Sequence[tuple[str, Adaptation]]):
        self.base, self.tokenizer, self.models = base, tokenizer, list[ScaledMethod]()
        offered = []
        for adapter, method in adapters:
            if not is_language_model(method):
                raise InputError(f"{adapter} is a {type(method).__name__}, a classifier; a language model is needed")
            self.models.append(ScaledMethod(base, method))
            usage = {"prompt": method.usage.prompt, "chat": method.usage.chat}
            offered.append({"name": adapter, "method": type(method).__name__, **usage})
        self.about = {"name": name, "layers": base.config.layers, "heads": base.config.heads, "adapters": offered}
        self.passes: dict[tuple[int | None, float | int], Pass] = {}

    def look(self, view: View) -> dict[str, Any]:
        """Tokens, log-probabilities, the next token, attention in thousandths, and the most likely token of each layer.

        Raises InputError for an adapter, layer or head that does not exist, and for too many tokens.
        """
        ids = self._ids(view)
        position = view.position % len(ids)
        _check_index("layer", view.layer, self.base.config.layers)
        _check_index("head", view.head, self.base.config.heads)
        base = self._passed(None, 1, ids)
        before = lens(base.decoder, base.states[-1:, position : position + 1])[0, 0].exp()
        model = self.model(view.adapter, view.scale)
        adapted = base if model is self.base else self._passed(view.adapter, view.scale, ids)
        weights = self._weights(view, model.decoder, adapted)
        shown = slice(max(0, position + 1 - WIDE) if view.wide else position, position + 1)
        by_layer = lens(adapted.decoder, adapted.states[:, shown]).exp()
        top, best = by_layer[-1, -1].topk(min(TOP, by_layer.shape[-1])), by_layer.max(-1)
        return {
            "tokens": [self._text(token) for token in ids], "position": position,
            "base": base.scores, "adapted": adapted.scores,
            "next": [self._text(token) for token in top.indices.tolist()],
            "next_adapted": top.values.tolist(), "next_base": before[top.indices].tolist(),
            "prefix": weights.shape[1] - len(ids), "attention": weights.mul(1000).round().int().tolist(),
            "lens": [[self._text(token) for token in row] for row in best.indices.tolist()],
            "lens_probabilities": best.values.tolist(), "lens_start": shown.start,
        }  # fmt: skip

    def answer(self, view: View) -> Iterator[str]:
        """The answer to the messages, in pieces."""
        model = self.model(view.adapter, view.scale)
        for piece in ChatSession(model, self.tokenizer).complete(view.messages or []):
            yield piece
            self.model(view.adapter, view.scale)  # another client may have changed the scale

    def _weights(self, view: View, decoder: Decoder, adapted: Pass) -> Float[Tensor, "T S"]:
        """The attention of a head, with a scaled prefix as the model computes it."""
        prefix = adapted.cache.prefix
        weights = attention(decoder, adapted.states, view.layer, prefix)[view.head]
        if prefix is None or view.scale == 1:
            return weights
        text = attention(decoder, adapted.states, view.layer)[view.head]
        return F.pad(text, (len(prefix), 0)).lerp(weights, view.scale)

    def model(self, adapter: int | None, scale: float | int) -> LanguageModel:
        """The base, or an adapter at its scale until the next call; at 0 the base."""
        if adapter is not None:
            _check_index("adapter", adapter, len(self.models))
        if adapter is None or scale == 0:
            return self.base
        self.models[adapter].scale = scale
        return self.models[adapter]

    def _passed(self, adapter: int | None, scale: float | int, ids: list[int]) -> Pass:
        """The pass over a text; those of the last adapters and scales are kept."""
        model, key = self.model(adapter, scale), (adapter, scale)
        found = self.passes[key] = self.passes.pop(key, None) or Pass(model)
        if len(self.passes) > MOST_PASSES:
            del self.passes[next(iter(self.passes))]
        found.run(ids)
        return found

    def _ids(self, view: View) -> list[int]:
        message = [{"role": "user", "content": view.text}]
        ids = self.tokenizer.chat(message) if view.chat else self.tokenizer.prompt(view.text)
        if len(ids) > MOST_TOKENS:
            raise InputError(f"the text may have {MOST_TOKENS} tokens, got {len(ids)}; shorten it")
        return ids

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])


def _check_index(name: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise InputError(f"there is no {name} {index}: there are {count}, counted from 0")
