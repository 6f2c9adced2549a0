"""Small byte-level tokenizers, and their description in the metadata of a GGUF file."""

import json
import re

from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel, Digits

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


def sentencepiece(style):
    """A tokenizer as Llama 2's: bos and a leading space come before a text, spaces are written as ▁, bytes as <0x41>.

    The space is added by a normalizer (the first files of transformers) or by the pre-tokenizer.
    """
    words = sorted(set(re.findall(r"[a-zA-Z]+", TEXT)))
    vocabulary = dict.fromkeys(
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    )
    merges = [("▁" + word[:n], word[n]) for word in words for n in range(len(word))]
    vocabulary |= dict.fromkeys(a + b for a, b in merges)
    ids = {token: index for index, token in enumerate(vocabulary)}
    pipeline = Pipeline(
        models.BPE(ids, list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replaced = normalizers.Replace(" ", "▁")
    if style == "normalizer":
        pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
        back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    else:
        pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
        back = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=style, split=False)]
    pipeline.decoder = decoders.Sequence(back)
    pipeline.add_special_tokens(["<unk>", "<s>", "</s>"])
    pipeline.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return pipeline


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


# Text made of special tokens and their parts.
FRAGMENTS = [*SPECIAL, "<|im_", "im_end|>", "<", "|>", ">", "end", "\n", " 12", "<|im_start|>assistant\n"]
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=6).map("".join)
