"""An exported GGUF file loads with equal logits and ids."""

import json
import re

import pytest
import tokenizers
import torch

import minillm
from minillm import DecoderConfig, InputError
from minillm.config import RopeScaling
from minillm.hub.gguf_export import export
from minillm.tokenizer import Tokenizer
from minillm.training.tokenizers import words
from tests.hub.gguf_writing import RELATIVES, YARN, llama_config, random_decoder
from tests.training.tokenizer_training import NAMES, SPECIAL, smollm, trained

GPT_2 = {"norm": "layer", "positions": "learned", "feed_forward": "gelu", "bias": True, "kv_heads": 4}


@pytest.mark.parametrize(
    "config",
    [llama_config(), llama_config(tie_embeddings=False), DecoderConfig.tiny(**GPT_2)],
    ids=["tied", "untied", "GPT-2"],
)
def test_an_exported_decoder_loads_with_equal_logits(tmp_path, config):
    decoder, ids = random_decoder(config), torch.tensor([[3, 1, 4, 1, 5]])
    export(decoder, None, tmp_path / "mine.gguf")
    again, tokenizer = minillm.load(tmp_path / "mine.gguf")
    assert tokenizer is None
    assert torch.equal(again(ids), decoder(ids))
    assert again.config == config


@pytest.mark.slow
def test_an_exported_tokenizer_loads_with_equal_ids(tmp_path, smollm2):
    source, tokenizer = smollm2
    tiny = random_decoder(llama_config(vocabulary=source.config.vocabulary, layers=1, width=8, heads=2, kv_heads=1))
    export(tiny, tokenizer, tmp_path / "mine.gguf")
    _, again = minillm.load(tmp_path / "mine.gguf")
    chat = [{"role": "user", "content": "In 2024: a  12 <|im_end|>\n"}]
    assert again.encode("a  12\n\nx 3") == tokenizer.encode("a  12\n\nx 3")
    assert again.chat(chat) == tokenizer.chat(chat)
    assert again.names == tokenizer.names


def test_what_gguf_has_no_type_for_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="like this decoder, with norm=rms, norm_first=False"):
        export(random_decoder(DecoderConfig.tiny(norm_first=False)), None, tmp_path / "mine.gguf")
    closed = words(["so so well"], 5)
    decoder = random_decoder(llama_config(vocabulary=closed.vocabulary))
    with pytest.raises(InputError, match="no tokenizer type for this tokenizer"):
        export(decoder, closed, tmp_path / "new" / "mine.gguf")
    assert not list(tmp_path.iterdir())


ADDED = {"id": 308, "content": "<x>", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
ADDED |= {"normalized": False}
NFC = {"normalizer": {"type": "NFC"}}


@pytest.mark.parametrize(
    ("added", "changes", "names", "message"),
    [
        ({"lstrip": True}, {}, NAMES, "has no lstrip for the added token '<x>'"),
        ({"normalized": True}, NFC, NAMES, "has no normalized for the added token '<x>'"),
        ({}, {}, {"bos": SPECIAL[0]}, "GGUF needs an eos token"),
        ({}, {"normalizer": {"type": "Lowercase"}}, NAMES, "must be byte-level BPE without a normalizer"),
        ({}, {"pre_tokenizer": {"type": "Whitespace"}}, NAMES, "with the pre-tokenizer smollm, gpt-2"),
    ],
    ids=["lstrip", "normalized", "eos", "normalizer", "pre-tokenizer"],
)
def test_a_tokenizer_that_llama_cpp_would_apply_otherwise_is_refused(tmp_path, added, changes, names, message):
    described = json.loads(trained(smollm()).to_str()) | changes
    described["added_tokens"].append(ADDED | added)
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described)), names)
    with pytest.raises(InputError, match=re.escape(message)):
        export(random_decoder(llama_config(vocabulary=tokenizer.vocabulary)), tokenizer, tmp_path / "mine.gguf")
    with pytest.raises(InputError, match=f"id {tokenizer.vocabulary - 1}, but the decoder only 300 embeddings"):
        export(random_decoder(llama_config(vocabulary=300)), tokenizer, tmp_path / "mine.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RELATIVES)
def test_an_exported_gguf_file_loads_with_equal_logits(tmp_path, name):
    decoder, ids = random_decoder(llama_config(**RELATIVES[name])), torch.arange(40)[None]
    export(decoder, None, tmp_path / "mine.gguf")
    again, _ = minillm.load(tmp_path / "mine.gguf")
    assert again.config == decoder.config
    assert torch.equal(again(ids), decoder(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"unrotated_layers": (0,)},
        {"query_key_norm": True, "bias": "attention"},
        {"query_key_norm": True, "rope_scaling": RopeScaling("llama3", 8.0)},
        {"rope_scaling": RopeScaling("llama3", 8.0, slow=2.0)},
        {"rope_scaling": RopeScaling("yarn", 4.0, 16, 1.0, 8.0, YARN.attention_factor)},
        {"rope_scaling": RopeScaling("yarn", 4.0, 16, 1.0, 32.0, 2.0)},
    ],
    ids=str,
)
def test_a_decoder_that_llama_cpp_would_compute_otherwise_is_not_exported(tmp_path, changes):
    with pytest.raises(InputError, match="has no llama, no qwen2, no qwen3, no smollm3, no gpt2 like this decoder"):
        export(random_decoder(llama_config(**changes)), None, tmp_path / "mine.gguf")
    assert not list(tmp_path.iterdir())


def test_a_sliding_window_is_not_exported(tmp_path):
    with pytest.raises(InputError, match=r"llama\.cpp ignores the sliding window of these decoders \(window=5\)"):
        export(random_decoder(llama_config(window=5)), None, tmp_path / "mine.gguf")
