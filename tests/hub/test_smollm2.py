"""SmolLM2-135M-Instruct, loaded from the same GGUF file by minillm and by transformers."""

import functools
import subprocess
import sys

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

import minillm
from minillm import DecoderConfig

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, there was a small robot who",
    "Water boils at 100 degrees because",
    "Review: a dull and lifeless film.\nSentiment:",
]


@pytest.fixture(scope="module")
def oracle(smollm2_path):
    """transformers' conversion. Without the caches it parses the header twice and rebuilds the same table of names for
    every module, which takes 20 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        folder, name = smollm2_path.parent, smollm2_path.name
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


@pytest.mark.slow
def test_it_loads_in_five_seconds(smollm2_path):
    """CPU time of a new process, which does not depend on other processes and has no shape checks."""
    program = (
        "import sys, time, minillm; minillm.load; start = time.process_time(); minillm.load(sys.argv[1]); "
        "print(time.process_time() - start)"
    )
    assert float(subprocess.check_output([sys.executable, "-c", program, smollm2_path])) < 5


@pytest.mark.slow
def test_logits_and_fifty_greedy_tokens_equal_those_of_transformers(smollm2, oracle):
    """If every generated token has the largest logit after those before it, greedy decoding generates these tokens."""
    decoder, tokenizer = smollm2
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    for prompt, answer in zip(prompts, greedy(oracle, prompts, 50), strict=True):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            ours, theirs = decoder(ids), oracle(ids).logits
        assert (ours - theirs).abs().max() < 1e-3
        for logits in (ours, theirs):
            assert logits.argmax(-1)[0, len(prompt) - 1 : -1].tolist() == answer


def greedy(oracle, prompts, tokens):
    """The tokens that the oracle generates after each prompt, in one batch padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return oracle.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()


def test_its_config_and_tokenizer(smollm2):
    """transformers' conversion of this file neither splits the digits nor joins the spaces and newlines."""
    decoder, tokenizer = smollm2
    assert decoder.config == DecoderConfig.llama("smollm2-135m")
    assert tokenizer.vocabulary == decoder.config.vocabulary
    tokens = [[tokenizer.pipeline.id_to_token(i) for i in tokenizer.encode(text)] for text in ("a  12", "x\n\n3")]
    assert tokens == [["a", "ĠĠ", "1", "2"], ["x", "ĊĊ", "3"]]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 2)
    assert tokenizer.stop == (0, 2)
    assert not tokenizer.starts_with_bos
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render_chat(chat).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_a_question(smollm2):
    decoder, tokenizer = smollm2
    ids = torch.tensor([tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])])
    answer = minillm.generate(decoder, ids, max_new_tokens=20, stop=tokenizer.stop)[0, ids.shape[1] :]
    assert tokenizer.decode(answer.tolist()) == "The capital of France is Paris.<|im_end|>"
