"""llama.cpp itself, from the package xllamacpp: a GGUF file in its server, on the CPU with one thread."""

import json
import random
from urllib.request import Request, urlopen

import pytest
import torch

PIECES = [
    "the", "The", " theme", "film", " ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "é", "e\u0301", "ß", "😀",
    "👨‍👩‍👧", "🇫🇷", "中文", "かな", "한국", "Ω", "ज़", "१२", "½", "Ⅷ", "²", "1", "12", "1234567",
    "3.14", "'s", "'LL", "don't", "!?", "...", "--", "<|endoftext|>", "<|im_end|>", "<s>", "</s>", "<unk>",
    "<0x0A>", "▁", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x07", "\x00", "𝒳", "<think>", "[NAME]", "_", "~",
]  # fmt: skip
MIXED = random.Random(0)
TEXTS = PIECES + ["".join(MIXED.choices(PIECES, k=MIXED.randint(2, 8))) for _ in range(200 - len(PIECES))]
"""Odd spaces, newlines, digits, scripts, emoji, control characters, and special tokens as text."""


class LlamaCpp:
    """A GGUF file, with a LoRA adapter if one is given, in float32. Skips the test without the package."""

    def __init__(self, path, adapter=None):
        xllamacpp = pytest.importorskip("xllamacpp", reason="there is no wheel of xllamacpp for this platform")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port = 0, 1, 0, 0
        params.warmup, params.fit_params, params.verbosity = False, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = params.n_threads_http = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(params)
        # A server that is deleted before its loop has started never ends: wait for its first answer.
        self.generate([0], 1)

    def encode(self, text, *, special=False, start=False):
        """The ids of a text; `special` recognises special tokens in it, `start` adds bos if the file says so."""
        return self._post("/tokenize", content=text, parse_special=special, add_special=start)["tokens"]

    def decode(self, ids):
        """The text of the ids, without the first space of SentencePiece."""
        return self._post("/detokenize", tokens=ids)["content"].removeprefix(" ")

    def generate(self, ids, tokens, without=()):
        """The greedy tokens after the ids."""
        settings = {"n_predict": tokens, "temperature": 0, "logit_bias": [[token, False] for token in without]}
        return self._post("/completion", prompt=ids, return_tokens=True, cache_prompt=False, **settings)["tokens"]

    def log_probabilities(self, ids, vocabulary):
        """The log probabilities of the token after the ids."""
        # The server answers with the probabilities only if the sampled token completes a character.
        sampled = {"n_predict": 1, "temperature": 0, "logit_bias": [["a", 1000]]}
        answer = self._post("/completion", prompt=ids, n_probs=vocabulary, cache_prompt=False, **sampled)
        found = torch.full((vocabulary,), torch.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def _post(self, path, **body):
        request = Request(self.server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:
            return json.load(answer)
