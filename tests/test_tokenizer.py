"""Text goes to ids and comes back, special tokens come from templates only, and a template is a stranger."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Pipeline
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel, Digits
from transformers import AutoTokenizer

from minillm import InputError, Tokenizer
from minillm.hub import gguf_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>", "unk": "<|endoftext|>"}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "the theme of the film is 1234 567 times thinner than this: don't, I'LL say!\n\n\n  It's\tthe end.\r\n" * 3


def trained(pretokeniser):
    """A byte-level BPE of every byte and a few dozen merges, ids of special tokens first."""
    pipeline = Pipeline(models.BPE())
    pipeline.pre_tokenizer = pretokeniser
    pipeline.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    pipeline.train_from_iterator([TEXT, "<|im_end|>", " 12 34"], trainer)
    return pipeline


def smollm():
    return pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(trained(smollm()), NAMES, TEMPLATE)


def metadata(pipeline, pre="smollm", **changes):
    """The pipeline as a GGUF file's metadata describes it."""
    model = json.loads(pipeline.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    described = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges}
    described |= {"token_type": [3 if token in SPECIAL else 1 for token in tokens]}
    described |= {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 2, "unknown_token_id": 0, **changes}
    entries = {f"tokenizer.ggml.{key}": value for key, value in described.items() if value is not None}
    return entries | {"tokenizer.chat_template": TEMPLATE}


def user(content):
    return [{"role": "user", "content": content}]


# Text that is half made of what could hurt.
FRAGMENTS = [*SPECIAL, "<|im_", "im_end|>", "<", "|>", ">", "end", "\n", " 12", "<|im_start|>assistant\n"]
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=6).map("".join)


@given(st.text())
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(HOSTILE)
def test_text_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


def test_encoding_adds_nothing(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode("the") + tokenizer.encode(" film") == tokenizer.encode("the film")


def test_text_that_is_no_unicode_is_a_sentence(tokenizer):
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("half \ud800 of a pair")


def test_special_tokens_can_be_left_out_of_what_is_shown(tokenizer):
    ids = [1, *tokenizer.encode("the film"), 2]
    assert tokenizer.decode(ids) == "<|im_start|>the film<|im_end|>"
    assert tokenizer.decode(ids, skip_special=True) == "the film"


def test_ids_have_their_roles(tokenizer):
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (1, 2, 2, (0, 2))
    bare = Tokenizer(trained(smollm()), {})
    assert (bare.bos, bare.eos, bare.pad, bare.chat_template) == (None, None, None, None)
    assert bare.stop == (0, 2)
    with pytest.raises(InputError, match="'<s>' is not in the tokenizer's vocabulary"):
        Tokenizer(trained(smollm()), {"bos": "<s>"})


# --- from GGUF ---

LLAMA_3 = Regex(gguf_tokenizer.LLAMA_3)
PRETOKENISERS = {
    "smollm": smollm(),
    "gpt-2": ByteLevel(add_prefix_space=False, use_regex=True),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(LLAMA_3, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}


@pytest.mark.parametrize("pre", PRETOKENISERS)
@given(text=st.one_of(st.text(), st.text(alphabet="a1 \n'tTHEhe.", max_size=30)))
def test_a_gguf_tokenizer_encodes_as_the_pipeline_that_it_describes(pre, text):
    pipeline, read = _described(pre)
    assert read.encode(text) == pipeline.encode(text, add_special_tokens=False).ids


def _described(pre, made={}):  # noqa: B006 (a cache: hypothesis calls this often)
    if pre not in made:
        pipeline = trained(PRETOKENISERS[pre])
        made[pre] = pipeline, Tokenizer.from_gguf(metadata(pipeline, pre))
        pipeline.encode_special_tokens = True
    return made[pre]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a  12", ["a", "ĠĠ", "1", "2"]),
        ("smollm", "x\n\n3", ["x", "ĊĊ", "3"]),
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("gpt-2", "don't 1234", ["don", "'t", "Ġ1234"]),
        ("llama-bpe", "a  1234", ["a", "Ġ", "Ġ", "123", "4"]),
        ("llama-bpe", "x!\n\n3", ["x", "!ĊĊ", "3"]),
        ("llama-bpe", "I'LL say", ["I", "'LL", "Ġsay"]),
    ],
)
def test_a_pretokeniser_cuts_where_llama_cpp_cuts(pre, text, pieces):
    built = Tokenizer.from_gguf(metadata(trained(smollm()), pre)).pipeline.pre_tokenizer
    assert [piece for piece, _ in built.pre_tokenize_str(text)] == pieces


def test_gguf_metadata_says_which_tokens_are_special():
    read = Tokenizer.from_gguf(metadata(trained(smollm())))
    assert read.special == dict(zip(SPECIAL, range(3), strict=True))
    assert (read.bos, read.eos, read.pad, read.chat_template) == (1, 2, 2, TEMPLATE)
    assert not read.starts_with_bos
    assert Tokenizer.from_gguf(metadata(trained(smollm()), add_bos_token=True)).starts_with_bos


def test_words_that_users_added_are_found_in_text_and_are_not_special():
    pipeline = trained(smollm())
    described = metadata(pipeline)
    described["tokenizer.ggml.tokens"].append("<tool_call>")
    described["tokenizer.ggml.token_type"].append(4)
    read = Tokenizer.from_gguf(described)
    assert read.encode("<tool_call>") == [len(described["tokenizer.ggml.tokens"]) - 1]
    assert "<tool_call>" not in read.special


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pre": "falcon"}, "'falcon'; minillm knows smollm, gpt-2, llama-bpe"),
        ({"pre": None}, "None; minillm knows"),
        ({"model": "llama"}, "'llama'; minillm reads 'gpt2'"),
        ({"tokens": None}, "lacks its tokens"),
        ({"merges": [1, 2]}, "lacks its merges"),
        ({"merges": ["nonsense"]}, "merges do not fit"),
        ({"merges": ["zzzz qqqq"]}, "merges do not fit"),
        ({"tokens": ["a", "a"]}, "a token twice"),
        ({"token_type": [1]}, "number of token types"),
        ({"eos_token_id": 1_000_000}, "eos token is 1000000"),
        ({"eos_token_id": -1}, "eos token is -1"),
    ],
    ids=str,
)
def test_gguf_metadata_that_makes_no_tokenizer_is_a_sentence(changes, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Tokenizer.from_gguf(metadata(trained(smollm()), **changes))


# --- directories ---


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.names, again.special, again.stop) == (tokenizer.names, tokenizer.special, tokenizer.stop)
    assert again.chat(user("a <|im_end|> b")) == tokenizer.chat(user("a <|im_end|> b"))


def test_the_fingerprint_tells_tokenizers_apart(tokenizer):
    assert len(tokenizer.fingerprint) == 64
    others = [
        Tokenizer(trained(ByteLevel(add_prefix_space=False)), NAMES, TEMPLATE),
        Tokenizer(trained(smollm()), NAMES, TEMPLATE + " "),
        Tokenizer(trained(smollm()), {}, TEMPLATE),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert Tokenizer(trained(smollm()), NAMES, TEMPLATE).fingerprint == tokenizer.fingerprint


def test_transformers_reads_a_saved_tokenizer_alike(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a  12 film\n\n3")["input_ids"] == tokenizer.encode("a  12 film\n\n3")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    conversation = [
        {"role": "system", "content": " x > y"},
        *user("the film, 12?"),
        {"role": "assistant", "content": ""},
    ]
    for prompted in (True, False):
        expected = theirs.apply_chat_template(conversation, add_generation_prompt=prompted, return_dict=False)
        assert tokenizer.chat(conversation, add_generation_prompt=prompted) == expected


def test_a_tokenizer_that_transformers_wrote_is_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.from_directory(tmp_path / "theirs")
    assert (again.names, again.chat_template) == (tokenizer.names, TEMPLATE)
    assert again.chat(user("film")) == tokenizer.chat(user("film"))


def test_a_template_in_a_file_of_its_own_goes_first_and_saving_replaces_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert Tokenizer.from_directory(tmp_path).render_chat(user("hello")) == "hello"
    tokenizer.save(tmp_path)
    assert Tokenizer.from_directory(tmp_path).chat_template == TEMPLATE


def test_older_ways_of_writing_settings_are_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    settings = {"bos_token": {"content": "<|im_start|>", "special": True}, "eos_token": None, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = Tokenizer.from_directory(tmp_path)
    assert (read.names, read.chat_template) == ({"bos": "<|im_start|>"}, TEMPLATE)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_directory(tmp_path).names == {}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"bos_token": 7}', '{"bos_token": "<nowhere>"}'])
def test_damaged_tokenizer_files_are_a_sentence(tokenizer, tmp_path, file, text):
    tokenizer.save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError):
        Tokenizer.from_directory(tmp_path)


def test_truncation_and_padding_that_a_file_asks_for_are_off(tmp_path):
    pipeline = trained(smollm())
    pipeline.enable_truncation(2)
    pipeline.enable_padding(length=99)
    Tokenizer(trained(smollm()), {}).save(tmp_path)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_directory(tmp_path)
    assert read.encode("the film is the end") == Tokenizer(trained(smollm()), {}).encode("the film is the end")


def test_a_vocabulary_that_would_make_special_tokens_of_text_is_refused():
    pipeline = Pipeline(models.WordLevel({"<s>": 0, "hello": 1, "[UNK]": 2}, unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pipeline.add_special_tokens(["<s>", "[UNK]"])
    hostile = Tokenizer(pipeline, {"bos": "<s>", "unk": "[UNK]"})
    assert hostile.encode("hello stranger") == [1, 2]
    with pytest.raises(InputError, match="special token"):
        hostile.encode("hello <s>")


def test_a_token_with_a_role_is_special_even_where_its_file_does_not_say_so():
    pipeline = Pipeline(models.WordLevel({"<s>": 0, "hello": 1, "[UNK]": 2}, unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pipeline.add_tokens(["<s>"])
    assert Tokenizer(pipeline, {"bos": "<s>"}).special == {"<s>": 0}
    described = {**metadata(trained(smollm())), "tokenizer.ggml.token_type": None}
    assert Tokenizer.from_gguf(described).special == dict(zip(SPECIAL, range(3), strict=True))


# --- conversations ---


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
def test_two_fields_cannot_make_a_special_token_between_them(tokenizer, first, second):
    gluing = Tokenizer(tokenizer.pipeline, NAMES, "<|im_start|>{{ messages[0]['a'] }}{{ messages[0]['b'] }}")
    ids = gluing.chat([{"a": first, "b": second}])
    assert sum(i in gluing.special.values() for i in ids) == 1
    assert gluing.decode(ids) == "<|im_start|>" + first + second


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
