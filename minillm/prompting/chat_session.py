"""A conversation with a model, turn by turn: the decoding cache is kept, so that a turn processes only its new tokens.

At each turn the chat template renders all messages, and the tokens from the first difference to the cache on are
processed. So a template may render earlier turns differently (Qwen 3 removes their thinking), and the messages may be
edited in any way.
"""

from collections.abc import Iterator
from itertools import count

import torch
from torch import nn

from minillm.errors import InputError
from minillm.generation import DecodingCache, GenerationOptions, LanguageModel, stream
from minillm.tokenizer import Tokenizer

ANSWER_TOKENS = 500
"""The maximum length of an answer, if no other is given."""


class ChatSession:
    """The messages so far, each with a role (system, user or assistant) and a content, and the model that answers.

    `last` has the numbers of tokens of the last answer, and why it ended: "stop" (an end token) or "length".
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, options: GenerationOptions | None = None, seed: int = 0
    ):  # fmt: skip
        self.tokenizer, self.options = tokenizer, options or GenerationOptions()
        self.options.check()
        self.messages, self.last, self.seeds = list[dict[str, str]](), dict[str, int | str](), count(seed)
        self.use(model)

    def use(self, model: LanguageModel) -> None:
        """Continue with this model, which processes the messages when it answers."""
        if isinstance(model, nn.Module):
            model.eval()
        self.model, self.cache = model, None

    def answer(self, text: str) -> Iterator[str]:
        """`complete` for the messages so far and this one of the user."""
        return self.complete([*self.messages, {"role": "user", "content": text}])

    def complete(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """The answer to these messages in pieces, as they are generated. Both then replace the messages so far.

        An answer that is interrupted leaves the messages as they were. Raises InputError on the call, before the first
        piece, also for messages that fill the context.
        """
        ids, options = self.tokenizer.chat(messages), self.options
        cache = self.cache = self.cache or DecodingCache(self.model)
        tokens = stream(
            self.model, torch.tensor([ids], device=cache.ids.device), max_new_tokens=self._room(len(ids), cache),
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=next(self.seeds),
            stop=self.tokenizer.stop, cache=cache,
        )  # fmt: skip
        new: list[int] = []

        def until_end() -> Iterator[int]:
            for token in map(int, tokens):
                new.append(token)
                if token not in self.tokenizer.stop:
                    yield token

        def pieces() -> Iterator[str]:
            answer = ""
            for piece in self.tokenizer.decode_stream(until_end()):
                answer += piece
                yield piece
            self.last = {"finish_reason": "stop" if new[-1] in self.tokenizer.stop else "length"}
            self.last |= {"prompt_tokens": len(ids), "cached_tokens": cache.shared, "completion_tokens": len(new)}
            self.messages = [*messages, {"role": "assistant", "content": answer}]

        return pieces()

    def _room(self, prompt: int, cache: DecodingCache) -> int:
        """The maximum length of an answer after a prompt of so many tokens: no more than the context has room for."""
        context, prefix = self.model.decoder.config.context_length, 0 if cache.prefix is None else len(cache.prefix)
        if (room := context - prefix - prompt) < 1:
            before = f", {prefix} of the prefix" if prefix else ""
            raise InputError(
                f"no room for an answer: {prompt} tokens of the conversation{before}, a context of {context}; start a "
                "new conversation (/reset), or remove the last turn (/undo)"
            )
        most = self.options.max_new_tokens
        return min(room, ANSWER_TOKENS if most is None else most)

    def undo(self) -> None:
        """Remove the last message of the user, and its answer. Raises InputError if there is none."""
        turns = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not turns:
            raise InputError("there is no turn to remove")
        self.messages = self.messages[: turns[-1]]

    def reset(self) -> None:
        """Remove all messages but the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def system(self, text: str) -> None:
        """Set the system message, or remove it with an empty text; the turns stay."""
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *turns] if text else turns
