"""Exported GGUF files in llama.cpp itself: its tokens, log probabilities and greedy tokens are those of minillm."""

import json

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, processors

import minillm
from minillm import DecoderConfig, adapt
from minillm.hub.gguf_export import export
from minillm.hub.gguf_file import GGUFFile
from minillm.hub.gguf_tokenizer import PRETOKENISERS
from minillm.tokenizer import Tokenizer
from tests.hub.gguf_writing import RELATIVES, llama_config, random_decoder
from tests.hub.llama_cpp import TEXTS, LlamaCpp
from tests.training.tokenizer_training import NAMES, TEMPLATE, trained

GPT_2 = {"norm": "layer", "positions": "learned", "feed_forward": "gelu", "bias": True, "kv_heads": 4}


def byte_level(pre="smollm", names=NAMES, **changes):
    """A byte-level tokenizer with a pre-tokenizer of llama.cpp and two user-defined tokens."""
    described = json.loads(trained(PRETOKENISERS[pre]).to_str())
    described["model"]["ignore_merges"] = pre == "llama-bpe"
    pipeline = tokenizers.Tokenizer.from_str(json.dumps(described | changes))
    pipeline.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "[NAME]")])
    return Tokenizer(pipeline, names, TEMPLATE)


def padded(tokenizer):
    return random_decoder(llama_config(vocabulary=tokenizer.vocabulary + 5))


def assert_equal_outputs(method, tokenizer, llama_cpp, tolerance=2e-5):
    """The log probabilities after a prompt, and 40 greedy tokens, none of them an end.

    Each token that llama.cpp generates must have minillm's largest logit after those before it.
    """
    prompt, ends = tokenizer.encode("the film is"), list(tokenizer.stop)
    greedy = llama_cpp.generate(prompt, 40, without=ends)
    assert len(greedy) == 40
    with torch.no_grad():
        logits = method(torch.tensor([prompt + greedy]))[0, len(prompt) - 1 : -1]
    found = llama_cpp.log_probabilities(prompt, logits.shape[1])
    assert (found - logits[0].log_softmax(-1)).abs().max() < tolerance
    logits[:, ends] = -torch.inf
    assert logits.argmax(-1).tolist() == greedy


@pytest.mark.parametrize(
    ("config", "tolerance"),
    # ggml tabulates gelu in half precision.
    [
        (llama_config(), 2e-5),
        (llama_config(tie_embeddings=False, bias=True), 2e-5),
        (DecoderConfig.tiny(**GPT_2), 2e-2),
        *((llama_config(**changes), 2e-5) for changes in RELATIVES.values()),
    ],
    ids=["Llama", "untied, with biases", "GPT-2", *RELATIVES],
)
@pytest.mark.parametrize("padding", [0, 5], ids=["whole", "padded"])
def test_llama_cpp_computes_the_logits_of_an_export(tmp_path, config, tolerance, padding):
    tokenizer = byte_level()
    sizes = {**vars(config), "vocabulary": tokenizer.vocabulary + padding}
    decoder = random_decoder(DecoderConfig(**sizes))
    # Smaller embeddings make the greedy tokens of a tied decoder differ from each other.
    decoder.embed.weight.data.mul_(0.3)
    export(decoder, tokenizer, tmp_path / "mine.gguf")
    assert_equal_outputs(decoder, tokenizer, LlamaCpp(tmp_path / "mine.gguf"), tolerance)


def test_llama_cpp_computes_the_logits_of_a_merged_lora(tmp_path):
    tokenizer = byte_level()
    method = adapt.LoRA(padded(tokenizer), r=4, targets="all-linear")
    for parameter in method.trainable().values():
        torch.nn.init.normal_(parameter, std=0.2)
    export(adapt.merge(method), tokenizer, tmp_path / "mine.gguf")
    assert_equal_outputs(method.eval(), tokenizer, LlamaCpp(tmp_path / "mine.gguf"))


@pytest.mark.parametrize("pre", PRETOKENISERS)
def test_llama_cpp_encodes_like_the_exported_tokenizer(tmp_path, pre):
    tokenizer = byte_level(pre)
    export(padded(tokenizer), tokenizer, tmp_path / "mine.gguf")
    llama_cpp, (_, again) = LlamaCpp(tmp_path / "mine.gguf"), minillm.load(tmp_path / "mine.gguf")
    for text in TEXTS:
        assert llama_cpp.encode(text) == tokenizer.encode(text)
        assert again.encode(text) == tokenizer.encode(text)
    chat = [{"role": "user", "content": "In 2024"}]
    assert llama_cpp.encode(tokenizer.render_chat(chat), special=True) == tokenizer.chat(chat) == again.chat(chat)
    assert (again.stop, again.names, again.vocabulary) == (tokenizer.stop, tokenizer.names, tokenizer.vocabulary)


@pytest.mark.parametrize("pre", PRETOKENISERS)
@pytest.mark.parametrize("starts", [True, False])
def test_llama_cpp_starts_with_bos_where_the_tokenizer_does(tmp_path, pre, starts):
    begin = processors.TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 1)])
    tokenizer = byte_level(pre, post_processor=json.loads(begin.__getstate__()) if starts else None)
    export(padded(tokenizer), tokenizer, tmp_path / "mine.gguf")
    assert LlamaCpp(tmp_path / "mine.gguf").encode("a", start=True) == [1] * starts + tokenizer.encode("a")
    assert minillm.load(tmp_path / "mine.gguf")[1].starts_with_bos == starts


def test_the_token_types_are_control_user_defined_normal_and_unused(tmp_path):
    tokenizer = byte_level()
    export(padded(tokenizer), tokenizer, tmp_path / "mine.gguf")
    metadata = GGUFFile(tmp_path / "mine.gguf").metadata
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    last = f"[PAD{tokenizer.vocabulary + 4}]"
    assert [types[token] for token in ("<|im_end|>", "<think>", "the", last)] == [3, 4, 1, 5]
    assert metadata["tokenizer.ggml.eot_token_id"] == 0


def test_a_vocabulary_with_gaps_keeps_its_ids(tmp_path):
    described = json.loads(byte_level().pipeline.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary["Ġfilm"] = described["added_tokens"][-1]["id"] + 3
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described)), NAMES)
    export(random_decoder(llama_config(vocabulary=tokenizer.vocabulary + 3)), tokenizer, tmp_path / "mine.gguf")
    for other in (LlamaCpp(tmp_path / "mine.gguf"), minillm.load(tmp_path / "mine.gguf")[1]):
        assert other.encode("the film [NAME]") == tokenizer.encode("the film [NAME]")


@pytest.mark.slow
def test_llama_cpp_continues_smollm2_like_minillm(tmp_path, smollm2):
    decoder, tokenizer = smollm2
    export(decoder, tokenizer, tmp_path / "mine.gguf")
    llama_cpp = LlamaCpp(tmp_path / "mine.gguf")
    assert [llama_cpp.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert_equal_outputs(decoder, tokenizer, llama_cpp, 1e-3)
