"""A conversation with a cache: equal to the full forward pass, and only the new tokens of a turn are processed."""

import pytest
import torch

from minillm import InputError, Tokenizer
from minillm.adapt import LoRA, PrefixTuning, SoftPrompt
from minillm.generation import GenerationOptions
from minillm.prompting.chat_session import ChatSession
from tests.adapt.low_rank import moved
from tests.prompting.asked import DECODER, TOKENIZER, answering, tokens_processed
from tests.tolerances import assert_close
from tests.training.tokenizer_training import NAMES, TEMPLATE

# As Qwen 3's removes the thinking of earlier answers.
SHORTENING = TEMPLATE.replace("message['content'] +", "(message['content'] if loop.last else message['content'][1:]) +")
MODELS = {
    "base": DECODER,
    "LoRA": moved(LoRA(DECODER, r=2, targets="all-linear")),
    "prefix": moved(PrefixTuning(DECODER, 3)),
    "gated prefix": moved(PrefixTuning(DECODER, 3, gated=True)),
    "soft prompt": moved(SoftPrompt(DECODER, 3)),
}


def assert_answer_equals_full_forward(session, text):
    """The logits of each step of an answer, which is then part of the messages."""
    steps, before = [], session.messages
    head = session.model.decoder.head
    handle = head.register_forward_hook(lambda module, inputs, logits: steps.append(logits[0]))
    answer = "".join(session.answer(text))
    handle.remove()
    turn = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    assert session.messages == [*before, *turn]
    prompt = session.tokenizer.chat([*before, turn[0]])
    processed = session.cache.ids
    assert processed[0, : len(prompt)].tolist() == prompt
    with torch.no_grad():
        expected = session.model(processed)[0, len(prompt) - 1 :]
    assert_close(torch.stack(steps), expected, "law", terms=processed.shape[1])


@pytest.mark.parametrize("template", [TEMPLATE, SHORTENING], ids=["all", "shortened"])
@pytest.mark.parametrize("model", MODELS)
def test_an_answer_equals_the_full_forward_after_every_change_of_the_conversation(model, template):
    tokenizer = Tokenizer(TOKENIZER.pipeline, NAMES, template)
    session = ChatSession(MODELS[model], tokenizer, GenerationOptions(max_new_tokens=5))
    changes = [
        lambda: None,
        lambda: session.system("be brief"),
        session.undo,
        lambda: session.use(MODELS["LoRA"]),
        lambda: session.use(MODELS[model]),
        session.reset,
    ]
    for turn, change in enumerate(changes):
        assert_answer_equals_full_forward(session, f"the film {turn}")
        change()
    assert_answer_equals_full_forward(session, "again")


@pytest.fixture(scope="module")
def fixed():
    return answering(*TOKENIZER.encode("the film"), TOKENIZER.eos)


def test_a_turn_processes_only_its_new_tokens_and_ends_at_the_end_token(fixed):
    session = ChatSession(fixed, TOKENIZER)
    prompts = []
    for _ in range(10):
        with tokens_processed() as processed:
            assert "".join(session.answer("a word")) == "the film"
        prompts.append(processed[0])
        assert processed[1:] == [1] * len(TOKENIZER.encode("the film"))
        assert session.last["finish_reason"] == "stop"
        assert session.last["prompt_tokens"] == session.last["cached_tokens"] + processed[0]
    turn = TOKENIZER.chat([{"role": "user", "content": "a word"}])
    assert prompts[0] == len(turn)
    # The end of the answer before, which was generated and not processed, and the newline after it.
    assert prompts[1:] == [len(turn) + 2] * 9


def test_an_answer_that_is_interrupted_anywhere_leaves_the_earlier_turns_intact():
    session = ChatSession(MODELS["prefix"], TOKENIZER, GenerationOptions(max_new_tokens=6))
    assert_answer_equals_full_forward(session, "one")
    before = session.messages
    for place in range(4):
        calls = []

        def interrupt(*_, place=place, calls=calls):
            calls.append(place)
            if len(calls) > place:
                raise KeyboardInterrupt

        handle = session.model.decoder.blocks[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(session.answer("a longer message that is stopped"))
        handle.remove()
        assert session.messages == before
    assert_answer_equals_full_forward(session, "two")


def test_a_full_context_ends_an_answer_and_refuses_the_next(fixed):
    session = ChatSession(fixed, TOKENIZER)
    prompt = len(TOKENIZER.chat([{"role": "user", "content": ""}]))
    text = "x" * (700 - prompt - 1)
    list(session.answer(text))
    assert (session.last["completion_tokens"], session.last["finish_reason"]) == (1, "length")
    before = session.messages
    with pytest.raises(InputError, match=r"no room for an answer: \d+ tokens .* a context of 700; .*/reset"):
        session.answer("more")
    assert session.messages == before
    session.undo()
    assert "".join(session.answer("x")) == "the film"


def test_undo_reset_and_the_system_message(fixed):
    session = ChatSession(fixed, TOKENIZER)
    session.system("be brief")
    for text in ("one", "two"):
        list(session.answer(text))
    contents = [message["content"] for message in session.messages]
    assert contents == ["be brief", "one", "the film", "two", "the film"]
    session.undo()
    session.system("be long")
    assert [message["content"] for message in session.messages] == ["be long", "one", "the film"]
    session.system("")
    session.undo()
    assert session.messages == []
    with pytest.raises(InputError, match="no turn"):
        session.undo()


def test_samples_differ_from_turn_to_turn_and_are_repeated_by_the_seed():
    def sampled(seed):
        session = ChatSession(DECODER, TOKENIZER, GenerationOptions(max_new_tokens=9, temperature=1.0), seed)
        first = "".join(session.answer("one"))
        session.undo()
        return first, "".join(session.answer("one"))

    first, again = sampled(0)
    assert first != again
    assert sampled(0) == (first, again)
    assert sampled(1)[0] == again
