"""Conversations: what is trained on is what follows the prompt of inference, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError, Tokenizer
from minillm.data.conversations import Conversation, encode_conversation
from tests.chat_templates import CHATML, FORMATS, LOOP, MESSAGES
from tests.training.tokenizer_training import HOSTILE, NAMES, smollm, trained

TOKENIZERS = {name: form.tokenizer for name, form in FORMATS.items()}
CHAT = TOKENIZERS["ChatML"]


def runs(row):
    """(start, end) of each run of trained ids."""
    edges = [
        n for n, pair in enumerate(zip([False, *row.trained], [*row.trained, False], strict=True)) if len({*pair}) > 1
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


def answers(tokenizer, rows):
    return [tokenizer.decode(row.ids[start:end]) for row in rows for start, end in runs(row)]


@pytest.mark.parametrize("name", FORMATS)
def test_the_ten_templates_write_the_published_formats(name):
    form = FORMATS[name]
    assert TOKENIZERS[name].render_chat(form.messages, add_generation_prompt=False) == form.written


@pytest.mark.parametrize("name", FORMATS)
@given(contents=st.lists(HOSTILE.map(str.strip).filter(bool), min_size=5, max_size=5))
def test_an_answer_is_trained_after_the_ids_of_inference_with_its_end_and_once(name, contents):
    tokenizer, form = TOKENIZERS[name], FORMATS[name]
    messages = [message | {"content": content} for message, content in zip(MESSAGES, contents, strict=True)]
    messages = messages[-len(form.messages) :]
    turns = Conversation(messages).turns
    rows = encode_conversation(tokenizer, Conversation(messages))
    trained_on = [(row, *run) for row in rows for run in runs(row)]
    assert len(trained_on) == len(turns)
    for turn, (row, start, end) in zip(turns, trained_on, strict=True):
        assert row.ids[:start] == tokenizer.chat(messages[:turn])
        assert [id_ in tokenizer.stop for id_ in row.ids[start:end]] == [False] * (end - start - 1) + [True]
        assert tokenizer.decode(row.ids[start : end - 1]).strip().endswith(messages[turn]["content"])


def test_the_trained_tokens_of_some_formats():
    def found(name):
        rows = encode_conversation(TOKENIZERS[name], Conversation(FORMATS[name].messages))
        return len(rows), answers(TOKENIZERS[name], rows)

    assert found("ChatML") == (1, ["the film<|im_end|>", "the theme<|im_end|>"])
    assert found("Llama 2") == (1, [" the film </s>", " the theme </s>"])
    assert found("Gemma") == (1, ["the film<end_of_turn>", "the theme<end_of_turn>"])
    assert found("none") == (1, ["the film<|endoftext|>", "the theme<|endoftext|>"])
    # The first answer loses its thoughts when a second one follows, so each is trained in a row of its own.
    empty = "<think>\n\n</think>\n\n"
    assert found("Qwen") == (2, [f"{empty}the film<|im_end|>", f"{empty}the theme<|im_end|>"])


def test_messages_after_the_last_answer_are_no_part_of_the_row():
    (row,) = encode_conversation(CHAT, Conversation(MESSAGES[:4]))
    assert CHAT.decode(row.ids).endswith("the film<|im_end|>")


def test_generation_tags_decide_which_tokens_of_an_answer_are_trained():
    tags = "{% generation %}{{ m.content }}{% endgeneration %}"
    tagged = CHATML.replace("m.role + '\\n' + m.content + '<|im_end|>\\n'", "m.role + '\\n'").replace(
        "}}{% endfor", "}}" + f"{{% if m.role == 'assistant' %}}{tags}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
        "{{ '<|im_end|>\\n' }}{% endfor",
    )  # fmt: skip
    tokenizer = Tokenizer(CHAT.pipeline, NAMES, tagged)
    conversation = Conversation(MESSAGES)
    assert encode_conversation(tokenizer, conversation) == encode_conversation(CHAT, conversation)
    thought = Tokenizer(CHAT.pipeline, NAMES, tagged.replace(tags, "(mm)\n" + tags))
    assert answers(thought, encode_conversation(thought, conversation)) == ["the film<|im_end|>", "the theme<|im_end|>"]
    last = Tokenizer(CHAT.pipeline, NAMES, tagged.replace(tags, f"{{% if loop.last %}}{tags}{{% endif %}}"))
    whole = [message for message in MESSAGES if message != MESSAGES[2]]
    assert answers(last, encode_conversation(last, Conversation(whole))) == ["the theme<|im_end|>"]


def test_an_answer_without_an_end_in_its_template_ends_with_eos_in_a_row_of_its_own():
    tokenizer = Tokenizer(trained(smollm()), {"eos": "<|endoftext|>"}, LOOP + "{{ m.content + '\\n' }}{% endfor %}")
    rows = encode_conversation(tokenizer, Conversation(MESSAGES[1:]))
    assert answers(tokenizer, rows) == ["the film\n<|endoftext|>", "the theme\n<|endoftext|>"]
    assert tokenizer.decode(rows[1].ids) == "what is 1?\nthe film\nand 2?\nthe theme\n<|endoftext|>"


THINKING = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")


@pytest.mark.parametrize(
    ("template", "names", "message"),
    [
        (
            THINKING,
            NAMES,
            r"line 7: the chat template continues its prompt for generation, '.*<think>\\n', with another",
        ),
        (LOOP + "{{ m.content }}{% endfor %}", {}, "line 7: an answer needs an end"),
        (FORMATS["Gemma"].template, NAMES, "line 7: the chat template fails on this conversation: no system"),
        (
            LOOP + "th{% generation %}eme{% endgeneration %}{% endfor %}",
            NAMES,
            "edge of {% generation %} within a token",
        ),
    ],
    ids=["ambiguous", "without an end", "an error of the template", "an edge within a token"],
)
def test_a_template_that_cannot_be_trained_with_is_refused_in_one_sentence(template, names, message):
    pipeline = trained(smollm()) if names else FORMATS["Mistral"].tokenizer.pipeline
    with pytest.raises(InputError, match=message):
        encode_conversation(Tokenizer(pipeline, names, template), Conversation(MESSAGES, place="line 7"))
