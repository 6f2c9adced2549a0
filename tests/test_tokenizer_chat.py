"""Conversations: only the template writes special tokens, and the template is untrusted code."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken

from minillm import InputError, Tokenizer
from tests.training.tokenizer_training import HOSTILE, NAMES, TEMPLATE, sentencepiece, smollm, trained, user


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(trained(smollm()), NAMES, TEMPLATE)


@given(st.lists(HOSTILE, min_size=1, max_size=4))
def test_a_conversation_has_only_the_special_tokens_of_its_template(tokenizer, contents):
    special = set(tokenizer.special.values())
    messages = [{"role": "user", "content": content} for content in contents]
    harmless = [{"role": "user", "content": "x"} for _ in contents]
    ids = tokenizer.chat(messages)
    assert [i for i in ids if i in special] == [i for i in tokenizer.chat(harmless) if i in special]
    assert tokenizer.decode(ids) == tokenizer.render_chat(messages)


@pytest.mark.parametrize("style", ["normalizer", "first", "always"])
@pytest.mark.parametrize("content", ["the film", " 12 ", "s> film <"])
def test_sentencepieces_space_in_a_chat_is_where_the_pipeline_adds_it(style, content):
    """Also where the text is encoded in pieces, since its edges could complete a special token."""
    rendered = f"<s>[INST] {content} [/INST]</s>the"
    template = rendered.replace(content, "{{ messages[0].content }}")
    tokenizer = Tokenizer(sentencepiece(style), {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, template)
    expected = sentencepiece(style).encode(rendered, add_special_tokens=False).ids
    assert tokenizer.chat(user(content)) == expected


@given(HOSTILE, HOSTILE)
@example("<|im_", "end|>")
@example("<|im_end|", ">")
@example("<", "|im_end|>")
def test_adjacent_fields_cannot_form_a_special_token(tokenizer, first, second):
    gluing = Tokenizer(tokenizer.pipeline, NAMES, "<|im_start|>{{ messages[0]['a'] }}{{ messages[0]['b'] }}")
    ids = gluing.chat([{"a": first, "b": second}])
    assert sum(i in gluing.special.values() for i in ids) == 1
    assert gluing.decode(ids) == "<|im_start|>" + first + second


@pytest.mark.parametrize(("template", "content"), [("<|im_{{ m }}", "end|>"), ("{{ m }}end|>", "<|im_")])
def test_a_message_cannot_complete_a_special_token_with_text_of_the_template(tokenizer, template, content):
    completing = Tokenizer(tokenizer.pipeline, NAMES, template.replace("m }", "messages[0]['content'] }"))
    ids = completing.chat(user(content))
    assert not set(ids) & set(completing.special.values())
    assert completing.decode(ids) == "<|im_end|>"


def test_a_template_may_build_a_special_token_around_a_role(tokenizer):
    building = Tokenizer(tokenizer.pipeline, NAMES, "{{ '<|' + messages[0]['role'] + '|>' }}")
    assert building.chat([{"role": "im_start", "content": ""}]) == [1]


@pytest.mark.parametrize(
    ("added", "template", "content", "expected"),
    [
        (["<a>", "<a>b"], "<a>b{{ m }}<a>", "x", ["<a>b", "<a>"]),
        (["<a>", "<a>b"], "<a>b{{ m }}<a>", "<a>b", ["<a>b", "<a>"]),
        (["☃"], "☃{{ m }}☃", "a☃b", ["☃", "☃"]),
        (["<<"], "<<{{ m }}", "a <<< b", ["<<"]),
    ],
    ids=["the longest match", "the longest match in text", "one character", "overlapping itself"],
)
def test_messages_with_unusual_special_tokens_stay_text(added, template, content, expected):
    pipeline = trained(smollm())
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer = Tokenizer(pipeline, {}, template.replace("m }", "messages[0]['content'] }"))
    ids = tokenizer.chat(user(content))
    assert [i for i in ids if i in tokenizer.special.values()] == [tokenizer.special[token] for token in expected]
    assert tokenizer.decode(ids) == template.replace("{{ m }}", content)


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        ("{{ messages[0]['content'] | lower }}", user("<|IM_END|>"), "<|im_end|>"),
        ("{{ messages[0] | tojson(separators=(',', ':')) }}", [{"<|im_end|>": "é"}], '{"<|im_end|>":"é"}'),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
            [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}]}],
            "<|im_end|>",
        ),
    ],
    ids=["changed case", "keys", "nested lists"],
)
def test_special_tokens_anywhere_in_messages_stay_text(tokenizer, template, messages, text):
    ids = Tokenizer(tokenizer.pipeline, NAMES, template).chat(messages)
    assert 2 not in ids
    assert tokenizer.decode(ids) == text
    assert 2 not in tokenizer.encode("<|im_end|>"), "encoding text is not changed by a chat"


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ bos_token }}|{{ eos_token }}|{{ unheard_of }}", "<|im_start|>|<|im_end|>|"),
        ("{% if true %}\n    yes\n{% endif %}", "    yes\n"),
        ("  {% if true %}yes{% endif %}", "yes"),
        ("{{ {'a': 'é<'} | tojson }}", '{"a": "é<"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ 'é' | tojson(ensure_ascii=true) }}{{ 'é' | tojson(true) }}", '"\\u00e9"' * 2),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%') | length > 0 }}", "True"),
        ("{{ messages[0].content.strip() | upper }}", "HI"),
        ("{{ 2 * 3.5 }}", "7.0"),
        ("{{ '=' * 3 }}{{ 2 * [1] }}", "===[1, 1]"),
        ("a{% generation %}{{ eos_token }}{% endgeneration %}b", "a<|im_end|>b"),
    ],
)
def test_templates_have_the_functions_of_transformers(tokenizer, template, rendered):
    assert Tokenizer(tokenizer.pipeline, NAMES, template).render_chat(user(" hi ")) == rendered


@pytest.mark.parametrize(
    "template",
    ["{% if", "{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ messages + 1 }}", "{{ raise_exception('a\nb') }}"],
)
def test_a_broken_template_is_refused_in_one_line(tokenizer, template):
    with pytest.raises(InputError) as refusal:
        Tokenizer(tokenizer.pipeline, NAMES, template).chat(user("hi"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "inside",
    ["raise_exception.__globals__", "'x'.format.__self__", "range.__closure__", "self._TemplateReference__context"],
)
def test_a_template_cannot_access_python_internals(tokenizer, inside):
    assert Tokenizer(tokenizer.pipeline, NAMES, "{{ " + inside + " }}").render_chat(user("hi")) == ""


@pytest.mark.parametrize(
    ("template", "content", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "hi", "roles must alternate"),
        (TEMPLATE, object(), "a list of messages"),
    ],
    ids=["an error of the template", "no strings"],
)
def test_invalid_conversations_are_refused(tokenizer, template, content, message):
    with pytest.raises(InputError, match=message):
        Tokenizer(tokenizer.pipeline, NAMES, template).chat(user(content))


def test_tools_are_passed_to_the_template_as_ordinary_text(tokenizer):
    template = "{% if tools %}{{ tools[0].name }}{% endif %}<|im_end|>"
    calling = Tokenizer(tokenizer.pipeline, NAMES, template)
    ids = calling.chat(user("hi"), tools=[{"name": "<|im_end|>"}])
    assert ids.count(2) == 1
    assert calling.decode(ids) == calling.render_chat(user("hi"), tools=[{"name": "<|im_end|>"}]) == "<|im_end|>" * 2
    assert calling.chat(user("hi")) == [2]
