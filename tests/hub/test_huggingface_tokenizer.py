"""Tokenizer files of transformers and minillm are loaded, with every start and end that they declare."""

import json

import pytest
from tokenizers import AddedToken, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from minillm import InputError, Tokenizer
from minillm.hub.huggingface_tokenizer import read_tokenizer, write_tokenizer, written_ids
from tests.training.tokenizer_training import NAMES, TEMPLATE, smollm, trained, user


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(trained(smollm()), NAMES, TEMPLATE)


def test_minillm_and_transformers_load_a_saved_tokenizer(tokenizer, tmp_path):
    write_tokenizer(tokenizer, tmp_path)
    again = read_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.names, again.special, again.stop) == (tokenizer.names, tokenizer.special, tokenizer.stop)
    assert again.chat(user("a <|im_end|> b")) == tokenizer.chat(user("a <|im_end|> b"))
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
    theirs.save_pretrained(tmp_path / "theirs")
    again = read_tokenizer(tmp_path / "theirs")
    assert (again.names, again.chat_template) == (tokenizer.names, TEMPLATE)
    assert again.chat(user("film")) == tokenizer.chat(user("film"))


def test_a_separate_template_file_takes_precedence_and_saving_removes_it(tokenizer, tmp_path):
    write_tokenizer(tokenizer, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert read_tokenizer(tmp_path).render_chat(user("hello")) == "hello"
    write_tokenizer(tokenizer, tmp_path)
    assert read_tokenizer(tmp_path).chat_template == TEMPLATE


def test_older_formats_of_the_settings_are_loaded(tokenizer, tmp_path):
    write_tokenizer(tokenizer, tmp_path)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    settings = {"bos_token": {"content": "<|im_start|>", "special": True}, "eos_token": None, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = read_tokenizer(tmp_path)
    assert (read.names, read.chat_template) == ({"bos": "<|im_start|>"}, TEMPLATE)
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_tokenizer(tmp_path).names == {}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"bos_token": 7}'])
def test_damaged_tokenizer_files_are_refused(tokenizer, tmp_path, file, text):
    write_tokenizer(tokenizer, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError):
        read_tokenizer(tmp_path)


def test_truncation_and_padding_in_a_file_are_disabled(tmp_path):
    pipeline = trained(smollm())
    pipeline.enable_truncation(2)
    pipeline.enable_padding(length=99)
    write_tokenizer(Tokenizer(trained(smollm()), {}), tmp_path)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path)
    assert read.encode("the film is the end") == Tokenizer(trained(smollm()), {}).encode("the film is the end")


def _write(directory, **files):
    """Write JSON files by their names without the suffix."""
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def bare(tmp_path):
    """A directory whose tokenizer.json alone names no token for a role; ids 0 to 2 are special."""
    trained(smollm()).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_ids_in_the_files_of_the_model_give_the_tokens_without_a_name(bare, file):
    """As GPT-2's directory on the hub."""
    _write(bare, tokenizer_config={"model_max_length": 1024}, **{file: {"bos_token_id": 1, "eos_token_id": 2}})
    read = read_tokenizer(bare)
    assert (read.bos, read.eos, read.pad) == (1, 2, None)


def test_every_declared_end_ends_generation_and_the_first_is_eos(bare):
    pipeline = trained(smollm())
    pipeline.add_tokens([AddedToken(token, special=False) for token in ("<turn>", "<message>", "<tool>")])
    pipeline.save(str(bare / "tokenizer.json"))
    turn, message, tool = (pipeline.token_to_id(token) for token in ("<turn>", "<message>", "<tool>"))
    _write(bare, generation_config={"eos_token_id": [turn, 2]}, config={"eos_token_id": message, "pad_token_id": -1})
    read = read_tokenizer(bare)
    assert (read.eos, read.stop) == (turn, (0, 2, turn, message))
    assert read.ends == ("<|im_end|>", "<message>")
    assert read.encode("<tool>") == [tool]
    assert turn not in read.encode("<turn>"), "text never ends a turn"
    assert written_ids(read) == {"bos_token_id": None, "eos_token_id": [turn, 2, message], "pad_token_id": None}
    write_tokenizer(read, bare)
    assert not (bare / "generation_config.json").exists()
    _write(bare, config=written_ids(read))
    assert read_tokenizer(bare).stop == read.stop


def test_names_in_the_tokenizers_files_take_precedence_over_ids(bare):
    _write(
        bare, tokenizer_config={"eos_token": "<|im_end|>"}, config={"bos_token_id": 0, "eos_token_id": 0},
        special_tokens_map={"eos_token": "<|endoftext|>", "bos_token": {"content": "<|im_start|>"}, "pad_token": ""},
    )  # fmt: skip
    read = read_tokenizer(bare)
    assert read.names == {"eos": "<|im_end|>", "bos": "<|im_start|>"}
    assert read.stop == (0, 2)


def test_a_named_token_that_the_vocabulary_lacks_is_added_as_in_transformers(bare):
    _write(bare, tokenizer_config={"eos_token": "<|im_end|>", "unk_token": "<new>", "pad_token": "[PAD]"})
    read, theirs = read_tokenizer(bare), AutoTokenizer.from_pretrained(bare)
    assert (read.unk, read.pad) == (theirs.unk_token_id, theirs.pad_token_id)
    read.limit(read.pad)
    assert (read.eos, read.pad) == (2, None)
    assert read.decode(read.encode("the [PAD]")) == "the [PAD]"


def test_ids_of_ordinary_tokens_are_the_defaults_of_another_vocabulary(bare):
    _write(bare, config={"bos_token_id": 5, "eos_token_id": 50256})
    read = read_tokenizer(bare)
    assert read.names == {}
    assert not set(read.encode("the film")) & set(read.stop)


@pytest.mark.parametrize("wrong", ["2", True, 2.0, [2, "x"]])
def test_an_end_that_is_no_id_is_refused(bare, wrong):
    _write(bare, generation_config={"eos_token_id": wrong})
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id must be an id or a list of ids"):
        read_tokenizer(bare)


def test_the_post_processor_and_the_padding_of_tokenizer_json_name_tokens(bare):
    pipeline = trained(smollm())
    pipeline.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A <|im_end|>", None, [("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    pipeline.enable_padding(pad_id=0, pad_token="<|endoftext|>")
    pipeline.save(str(bare / "tokenizer.json"))
    read = read_tokenizer(bare)
    assert read.names == {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
    assert read.prompt("film") == [1, *read.encode("film")]


def test_the_first_files_of_gpt_2_give_its_tokenizer(tmp_path):
    pipeline = trained(ByteLevel(add_prefix_space=False))
    model = json.loads(pipeline.to_str())["model"]
    _write(tmp_path, vocab=model["vocab"], config={"eos_token_id": 0}, added_tokens={"<new>": len(model["vocab"])})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]))
    read = read_tokenizer(tmp_path)
    text = "the film isn't  12 34\n\nthe end<new>"
    ids = read.encode(text)
    assert (ids[:-1], ids[-1], read.eos) == (pipeline.encode(text[:-5]).ids, len(model["vocab"]), 0)
    assert read.decode(ids) == text
    _write(tmp_path, added_tokens={"<new>": 7000})
    with pytest.raises(InputError, match="'<new>' must have the next free id"):
        read_tokenizer(tmp_path)
    _write(tmp_path, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(InputError, match="GPT-2's tokenizer alone, not a 'Qwen2Tokenizer'"):
        read_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    assert read_tokenizer(tmp_path) is None


DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
GROWING = {"type": "Sequence", "normalizers": [DOUBLED] * 11, "decoders": [DOUBLED] * 11}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["model"]["vocab"].update(zz=2**31), "the id of 'zz' must be an integer below 4194304"),
        (
            lambda found: found["model"]["vocab"].update(zz=-1),
            "'zz' must be an integer below 4194304, got -1",
        ),
        (lambda found: found["model"]["vocab"].update(zz=True), "the id of 'zz' must be an integer"),
        (lambda found: found["model"]["vocab"].update(zz=3), "'zz' have the same id, 3"),
        (lambda found: found["added_tokens"][-1].update(content="zz", id=4000), "'zz' must have the next free id, "),
        (lambda found: found["added_tokens"][-1].update(content="\ud800"), "surrogates not allowed"),
        (lambda found: found.update(normalizer=GROWING), "the normalizer must lengthen a text at most 1000 times"),
        (lambda found: found.update(decoder=GROWING), "the decoder must lengthen a text at most 1000 times"),
        (lambda found: found.pop("model"), "cannot be read as a tokenizer"),
        (lambda found: found.update(normalizer={"type": "none"}), "cannot be read as a tokenizer"),
    ],
    ids=range(10),
)
def test_ids_and_tokens_are_checked_before_the_library_reads_them(tokenizer, tmp_path, change, message):
    """The library needs 4 bytes for every number up to the largest id, and aborts where it has no memory."""
    write_tokenizer(tokenizer, tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    change(found)
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=message) as raised:
        read_tokenizer(tmp_path)
    assert "tokenizer.json" in str(raised.value)


def test_a_pattern_that_never_ends_is_one_sentence(tokenizer, tmp_path):
    write_tokenizer(tokenizer, tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(found | {"pre_tokenizer": split}))
    with pytest.raises(InputError, match=r"this tokenizer fails on 'xxx.*retry-limit"):
        read_tokenizer(tmp_path).encode("x" * 40)
    chatting = read_tokenizer(tmp_path)
    chatting.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match=r"this tokenizer fails on 'xxx.*retry-limit"):
        chatting.chat([{"role": "user", "content": "x" * 40}])
