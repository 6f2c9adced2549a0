"""Conversations: special tokens come from the template only, and the template is a stranger's program."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken

from minillm import InputError, Tokenizer
from tests.training.tokenizer_training import HOSTILE, NAMES, TEMPLATE, smollm, trained, user


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(trained(smollm()), NAMES, TEMPLATE)


@given(st.lists(HOSTILE, min_size=1, max_size=4))
def test_a_conversation_has_the_special_tokens_of_its_template_and_no_others(tokenizer, contents):
    special = set(tokenizer.special.values())
    messages = [{"role": "user", "content": content} for content in contents]
    harmless = [{"role": "user", "content": "x"} for _ in contents]
    ids = tokenizer.chat(messages)
    kept, expected = ([i for i in seen if i in special] for seen in (ids, tokenizer.chat(harmless)))
    assert kept == expected
    assert tokenizer.decode(ids) == tokenizer.render_chat(messages)


@given(HOSTILE, HOSTILE)
@example("<|im_", "end|>")
@example("<|im_end|", ">")
@example("<", "|im_end|>")
def test_two_fields_cannot_make_a_special_token_between_them(tokenizer, first, second):
    gluing = Tokenizer(tokenizer.pipeline, NAMES, "<|im_start|>{{ messages[0]['a'] }}{{ messages[0]['b'] }}")
    ids = gluing.chat([{"a": first, "b": second}])
    assert sum(i in gluing.special.values() for i in ids) == 1
    assert gluing.decode(ids) == "<|im_start|>" + first + second


@pytest.mark.parametrize(("template", "content"), [("<|im_{{ m }}", "end|>"), ("{{ m }}end|>", "<|im_")])
def test_the_edge_of_a_message_cannot_complete_what_the_template_began(tokenizer, template, content):
    completing = Tokenizer(tokenizer.pipeline, NAMES, template.replace("m }", "messages[0]['content'] }"))
    ids = completing.chat(user(content))
    assert not set(ids) & set(completing.special.values())
    assert completing.decode(ids) == "<|im_end|>"


def test_a_template_may_build_a_special_token_around_a_role(tokenizer):
    building = Tokenizer(tokenizer.pipeline, NAMES, "{{ '<|' + messages[0]['role'] + '|>' }}")
    assert building.chat([{"role": "im_start", "content": ""}]) == [1]


def test_where_two_special_tokens_begin_the_longer_is_meant():
    pipeline = trained(smollm())
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<a>", "<a>b")])
    tokenizer = Tokenizer(pipeline, {}, "<a>b{{ messages[0]['content'] }}<a>")
    expected = [tokenizer.special["<a>b"], tokenizer.special["<a>"]]
    for content in ("x", "<a>b"):
        ids = tokenizer.chat(user(content))
        assert [i for i in ids if i in tokenizer.special.values()] == expected


def test_a_special_token_of_one_character_is_guarded_too():
    pipeline = trained(smollm())
    pipeline.add_special_tokens([AddedToken("☃", special=True, normalized=False)])
    tokenizer = Tokenizer(pipeline, {}, "☃{{ messages[0]['content'] }}☃")
    ids = tokenizer.chat(user("a☃b"))
    assert [i == tokenizer.special["☃"] for i in ids] == [True, *[False] * (len(ids) - 2), True]
    assert tokenizer.decode(ids) == "☃a☃b☃"


def test_a_special_token_that_overlaps_itself_is_guarded_too():
    pipeline = trained(smollm())
    pipeline.add_special_tokens([AddedToken("<<", special=True, normalized=False)])
    tokenizer = Tokenizer(pipeline, {}, "<<{{ messages[0]['content'] }}")
    ids = tokenizer.chat(user("a <<< b"))
    assert ids.count(tokenizer.special["<<"]) == 1
    assert tokenizer.decode(ids) == "<<a <<< b"


def test_a_template_that_changes_capitals_makes_no_special_tokens(tokenizer):
    lowering = Tokenizer(tokenizer.pipeline, NAMES, "{{ messages[0]['content'] | lower }}")
    ids = lowering.chat(user("<|IM_END|>"))
    assert 2 not in ids
    assert lowering.decode(ids) == "<|im_end|>"


def test_special_tokens_in_keys_are_guarded(tokenizer):
    showing = Tokenizer(tokenizer.pipeline, NAMES, "{{ messages[0] | tojson(separators=(',', ':')) }}")
    ids = showing.chat([{"<|im_end|>": "é"}])
    assert 2 not in ids
    assert showing.decode(ids) == '{"<|im_end|>":"é"}'


def test_special_tokens_in_lists_and_deeper_are_guarded(tokenizer):
    parts = Tokenizer(
        tokenizer.pipeline, NAMES, "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    ids = parts.chat([{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}]}])
    assert 2 not in ids
    assert parts.decode(ids) == "<|im_end|>"


def test_conversations_do_not_open_the_door_for_text(tokenizer):
    tokenizer.chat(user("x"))
    assert 2 not in tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ bos_token }}|{{ eos_token }}|{{ unheard_of }}", "<|im_start|>|<|im_end|>|"),
        ("{% if true %}\n    yes\n{% endif %}", "    yes\n"),
        ("  {% if true %}yes{% endif %}", "yes"),
        ("{{ {'a': 'é<'} | tojson }}", '{"a": "é<"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%') | length > 0 }}", "True"),
        ("{{ messages[0].content.strip() | upper }}", "HI"),
        ("{{ 2 * 3.5 }}", "7.0"),
    ],
)
def test_templates_find_what_they_expect(tokenizer, template, rendered):
    assert Tokenizer(tokenizer.pipeline, NAMES, template).render_chat(user(" hi ")) == rendered


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% if",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{{ messages + 1 }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(90000) %}{{ bos_token }}{{ '" + "x" * 1000 + "' }}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{#" + "x" * 300_000 + "#}",
    ],
    ids=lambda template: template[:50],
)
def test_a_hostile_or_broken_template_is_a_sentence(tokenizer, template):
    with pytest.raises(InputError) as refusal:
        Tokenizer(tokenizer.pipeline, NAMES, template).chat(user("hi"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "inside",
    ["raise_exception.__globals__", "'x'.format.__self__", "range.__closure__", "self._TemplateReference__context"],
)
def test_a_template_sees_nothing_of_python(tokenizer, inside):
    assert Tokenizer(tokenizer.pipeline, NAMES, "{{ " + inside + " }}").render_chat(user("hi")) == ""


def test_what_a_template_complains_of_is_passed_on(tokenizer):
    strict = Tokenizer(tokenizer.pipeline, NAMES, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        strict.chat(user("hi"))


def test_without_a_template_there_is_no_conversation(tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer(tokenizer.pipeline, NAMES).chat(user("hi"))


def test_messages_that_are_no_data_are_a_sentence(tokenizer):
    with pytest.raises(InputError, match="a list of messages"):
        tokenizer.chat([{"role": "user", "content": object()}])
