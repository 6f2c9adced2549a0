"""`minillm generate` makes the ids of a prompt as the training does, and prints the text of the generated ids."""

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError, Tokenizer, generate, load, save
from minillm.adapt import FineTune, LoRA
from minillm.adapt.description import Usage
from minillm.data.conversations import exchange
from minillm.data.templates import Template
from minillm.prompting.fitting import encode_conversations
from minillm.prompting.generate import Generate
from minillm.prompting.lengths import room
from minillm.prompting.scoring import answer_scores
from tests.training.tokenizer_training import NAMES, TEMPLATE, sentencepiece, smollm, trained

LLAMA = Tokenizer(sentencepiece("normalizer"), {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
SMOLLM = Tokenizer(trained(smollm()), NAMES, TEMPLATE)
NEW = 6


def _saved(tokenizer, directory):
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.tiny(vocabulary=tokenizer.vocabulary, context_length=256, tie_embeddings=False))
    torch.nn.init.normal_(decoder.head.weight)
    save(decoder, tokenizer, directory)
    return decoder.eval()


def _printed(capsys, prompt, base, **options):
    Generate(prompt=prompt, base=str(base), device="cpu", threads=1, max_new_tokens=NEW, **options).run()
    return capsys.readouterr().out.removesuffix("\n")


def _continuation(model, tokenizer, ids):
    new = generate(model, torch.tensor([ids]), max_new_tokens=NEW, stop=tokenizer.stop)[0, len(ids) :].tolist()
    return "".join(tokenizer.decode_stream(token for token in new if token not in tokenizer.stop))


@pytest.mark.parametrize("tokenizer", [LLAMA, SMOLLM])
def test_a_prompt_has_the_ids_of_the_whole_text_in_training_and_in_generation(tokenizer, tmp_path, capsys):
    decoder = _saved(tokenizer, tmp_path)
    ids = [1] * (tokenizer is LLAMA) + tokenizer.pipeline.encode("the film", add_special_tokens=False).ids
    assert _printed(capsys, "the film", tmp_path) == "the film" + _continuation(decoder, tokenizer, ids)
    ((row,),) = encode_conversations(tokenizer, [exchange("the film", " is", "{text}")], room(decoder, 0))
    assert row.ids == [*ids, *tokenizer.encode(" is"), tokenizer.eos]
    assert row.answer == len(ids)


def test_a_space_between_a_prompt_and_its_continuation_is_printed_once(tmp_path, capsys):
    decoder = _saved(LLAMA, tmp_path)
    following = [LLAMA.pipeline.token_to_id(token) for token in ("▁film", "▁is", "▁the", "▁theme")]
    with torch.no_grad():
        decoder.head.weight.zero_()
        for block in decoder.blocks:
            block.attention.out.weight.zero_()
            block.feed_forward.down.weight.zero_()
        for token, successor in zip(following, [*following[1:], 2], strict=True):
            decoder.head.weight[successor] += 9 * decoder.norm(decoder.embed.weight[token])
    save(decoder, LLAMA, tmp_path)
    assert _printed(capsys, "the film", tmp_path) == "the film is the theme"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A base, and a LoRA of it that was trained with a prompt template."""
    base = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    method = LoRA(_saved(SMOLLM, base), r=2, targets="all-linear")
    for parameter in method.trainable().values():
        torch.nn.init.normal_(parameter)
    return base, method.eval()


def _with_usage(adapted, **usage):
    base, method = adapted
    method.usage = Usage(**usage)
    method.save(base / "adapter", tokenizer=SMOLLM)
    return method, {"base": base, "adapter": base / "adapter"}


@pytest.mark.parametrize("typed", ["the film é", "the film é\n", " the film e\u0301 "])
def test_an_adapters_template_is_applied_to_the_text(adapted, typed, capsys):
    method, paths = _with_usage(adapted, prompt="Q: {text}\n")
    expected = "Q: the film é\n" + _continuation(method, SMOLLM, SMOLLM.encode("Q: the film é\n"))
    assert _printed(capsys, typed, **paths) == expected
    assert _printed(capsys, "Q: the film é\n", raw=True, **paths) == expected


def test_a_chat_template_is_applied_once(adapted, capsys):
    method, paths = _with_usage(adapted, prompt="Q: {text}", chat=True, end="\n")
    answer = _continuation(method, SMOLLM, SMOLLM.chat([{"role": "user", "content": "Q: the film"}])).split("\n")[0]
    assert _printed(capsys, "the film", **paths) == _printed(capsys, "the film", chat=True, **paths) == answer
    method, paths = _with_usage(adapted, prompt="Q: {text}")
    assert _printed(capsys, "the film", chat=True, **paths) == _continuation(
        method, SMOLLM, SMOLLM.chat([{"role": "user", "content": "the film"}])
    )
    with pytest.raises(InputError, match="either --chat or --raw"):
        _printed(capsys, "the film", chat=True, raw=True, **paths)


@pytest.mark.parametrize("labels", [[" a", " b"], [" not", " not sure", " the film"]])
def test_an_adapter_for_labels_gives_the_most_probable_one(adapted, labels, capsys):
    method, paths = _with_usage(adapted, prompt="{text}:", labels=labels, end="\n")
    ids = Template("{text}:", end="\n").answers(SMOLLM, ["x"], labels)
    best = labels[int(answer_scores(method, [SMOLLM.encode("x:")], ids).argmax())]
    assert _printed(capsys, "x", **paths) == "x:" + best
    assert _printed(capsys, "x:", raw=True, **paths) == "x:" + _continuation(method, SMOLLM, SMOLLM.encode("x:"))


def test_a_classifier_in_the_heads_place_generates_no_text(adapted, capsys):
    base, _ = adapted
    FineTune(load(base)[0], "output", classes=[3, 4]).save(base / "classes")
    with pytest.raises(InputError, match="a classifier; generate needs a language model"):
        Generate(prompt="x", base=str(base), adapter=base / "classes")._load()
