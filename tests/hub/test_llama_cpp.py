"""Exported GGUF files in llama.cpp itself: its tokens, log probabilities and greedy tokens are those of minillm."""

import json
from functools import partial

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, processors

import minillm
from minillm import DecoderConfig, InputError, adapt
from minillm.hub.gguf_export import export
from minillm.hub.gguf_file import GGUFFile
from minillm.hub.gguf_lora import export_lora
from minillm.hub.gguf_tokenizer import PRETOKENISERS
from minillm.tokenizer import Tokenizer
from tests.hub.gguf_writing import RELATIVES, llama_config, random_decoder
from tests.hub.llama_cpp import TEXTS, LlamaCpp
from tests.hub.sentence_pieces import sentence_pieces
from tests.training.tokenizer_training import NAMES, TEMPLATE, trained

GPT_2 = {"norm": "layer", "positions": "learned", "feed_forward": "gelu", "bias": True, "kv_heads": 4}


def byte_level(pre="smollm", names=NAMES, **changes):
    """A byte-level tokenizer with a pre-tokenizer of llama.cpp and two user-defined tokens."""
    described = json.loads(trained(PRETOKENISERS[pre]).to_str())
    described["model"]["ignore_merges"] = pre == "llama-bpe"
    pipeline = tokenizers.Tokenizer.from_str(json.dumps(described | changes))
    pipeline.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "[NAME]")])
    return Tokenizer(pipeline, names, TEMPLATE)


TOKENIZERS = {pre: partial(byte_level, pre) for pre in PRETOKENISERS}
TOKENIZERS |= {"SentencePiece": sentence_pieces, "SentencePiece without a space": partial(sentence_pieces, space=False)}


def padded(tokenizer):
    return random_decoder(llama_config(vocabulary=tokenizer.vocabulary + 5))


def assert_equal_outputs(method, tokenizer, llama_cpp, tolerance=1e-5):
    """The log probabilities after a prompt, and 40 greedy tokens, none of them an end.

    Each token that llama.cpp generates must have minillm's largest logit after those before it.
    """
    prompt, ends = tokenizer.encode("the film is"), list(tokenizer.stop)
    greedy = llama_cpp.generate(prompt, 40, without=ends)
    assert len(greedy) == 40
    with torch.no_grad():
        logits = method(torch.tensor([prompt + greedy]))[0, len(prompt) - 1 : -1]
    found, expected = llama_cpp.log_probabilities(prompt, logits.shape[1]), logits[0].log_softmax(-1)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    logits[:, ends] = -torch.inf
    assert logits.argmax(-1).tolist() == greedy


@pytest.mark.parametrize(
    ("config", "kind", "tolerance"),
    [
        (llama_config(), "llama-bpe", 1e-5),
        (llama_config(tie_embeddings=False, bias=True), "smollm", 1e-5),
        (llama_config(), "SentencePiece", 1e-5),
        (DecoderConfig.tiny(**GPT_2), "gpt-2", 1e-3),  # ggml tabulates gelu in half precision
        *((llama_config(**changes), "qwen2", 1e-5) for changes in RELATIVES.values()),
    ],
    ids=["Llama", "untied, with biases", "SentencePiece", "GPT-2", *RELATIVES],
)
@pytest.mark.parametrize("padding", [0, 5], ids=["whole", "padded"])
def test_llama_cpp_computes_the_logits_of_an_export(tmp_path, config, kind, tolerance, padding):
    tokenizer = TOKENIZERS[kind]()
    sizes = {**vars(config), "vocabulary": tokenizer.vocabulary + padding}
    decoder = random_decoder(DecoderConfig(**sizes))
    # Smaller embeddings make the greedy tokens of a tied decoder differ from each other.
    decoder.embed.weight.data.mul_(0.3)
    export(decoder, tokenizer, tmp_path / "mine.gguf")
    assert_equal_outputs(decoder, tokenizer, LlamaCpp(tmp_path / "mine.gguf"), tolerance)


GPT2 = DecoderConfig.tiny(**GPT_2, vocabulary=313)
LORAS = {
    "all matrices": (llama_config(vocabulary=313), {"targets": "all-linear"}, 1e-5),
    "ranks and scales": (
        llama_config(vocabulary=313, tie_embeddings=False, bias=True),
        {"targets": ["key", "down", "head"], "ranks": {"key": 2}, "alphas": {"down": 7}, "rank_stabilised": True}, 1e-5,
    ),
    "Qwen3": (llama_config(vocabulary=313, **RELATIVES["Qwen3"]), {}, 1e-5),
    "parts of GPT-2's fused matrix": (GPT2, {"targets": ["query", "value", "up"], "ranks": {"value": 3}}, 1e-3),
}  # fmt: skip


def trained_lora(config, method=adapt.LoRA, **options):
    adapted = method(random_decoder(config), r=4, **options)
    for parameter in adapted.trainable().values():
        torch.nn.init.normal_(parameter, std=0.2)
    return adapted.eval()


@pytest.mark.parametrize("name", LORAS)
def test_llama_cpp_computes_the_logits_of_a_lora_merged_and_as_an_adapter(tmp_path, name):
    (config, options, tolerance), tokenizer = LORAS[name], byte_level()
    method = trained_lora(config, **options)
    export(random_decoder(config), tokenizer, tmp_path / "base.gguf")
    export(adapt.merge(method), tokenizer, tmp_path / "merged.gguf")
    export_lora(method, tmp_path / "lora.gguf")
    assert_equal_outputs(method, tokenizer, LlamaCpp(tmp_path / "merged.gguf"), tolerance)
    assert_equal_outputs(method, tokenizer, LlamaCpp(tmp_path / "base.gguf", tmp_path / "lora.gguf"), tolerance)


def test_llama_cpp_adds_a_pissa_like_minillm(tmp_path):
    tokenizer, method = byte_level(), trained_lora(llama_config(vocabulary=313), adapt.PiSSA)
    export(random_decoder(method.config), tokenizer, tmp_path / "base.gguf")
    export_lora(method, tmp_path / "lora.gguf")
    assert_equal_outputs(method, tokenizer, LlamaCpp(tmp_path / "base.gguf", tmp_path / "lora.gguf"))


def test_an_adapter_that_llama_cpp_cannot_add_is_refused(tmp_path):
    tied, biased = random_decoder(llama_config()), random_decoder(llama_config(bias=True))
    for method, message in (
        (adapt.DoRA(tied), "has no DoRA: export the merged"),
        (adapt.SoftPrompt(tied, 2), "has no SoftPrompt"),
        (adapt.LoRA(tied, targets="embed"), "no update of embed where it is tied"),
        (adapt.LoRA(random_decoder(GPT2), targets="positions"), "no update of positions"),
        (adapt.LoRA(biased, train_bias=True), "trained biases"),
    ):
        with pytest.raises(InputError, match=message):
            export_lora(method, tmp_path / "lora.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_encodes_like_the_exported_tokenizer(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]()
    export(padded(tokenizer), tokenizer, tmp_path / "mine.gguf")
    llama_cpp, (_, again) = LlamaCpp(tmp_path / "mine.gguf"), minillm.load(tmp_path / "mine.gguf")
    for text in TEXTS:
        expected = tokenizer.prompt(text)
        assert llama_cpp.encode(text, start=True) == expected
        assert again.prompt(text) == expected
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


def test_llama_cpp_decodes_the_bytes_of_a_character(tmp_path):
    tokenizer = sentence_pieces()
    export(padded(tokenizer), tokenizer, tmp_path / "mine.gguf")
    assert LlamaCpp(tmp_path / "mine.gguf").decode(tokenizer.prompt("a😀")[1:]) == "a😀"


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
