"""Ten chat templates of our own, which write the published formats, and what each writes for one conversation."""

from typing import NamedTuple

from tokenizers import AddedToken, Regex, pre_tokenizers

from minillm import Tokenizer
from tests.training.tokenizer_training import sentencepiece, smollm, trained

LOOP, ASK = "{% for m in messages %}", "{% endfor %}{% if add_generation_prompt %}"
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
START = "{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = LOOP + TURN + ASK + START
LLAMA_2 = (
    "{% set s = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' if messages[0].role == 'system' else '' %}"
    + LOOP
    + "{% if m.role == 'user' %}{% set first = loop.index0 == (1 if s else 0) %}"
    "{{ bos_token + '[INST] ' + (s if first else '') + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}"
    + LOOP
    + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
    + ASK
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + LOOP
    + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
    "{{ '<end_of_turn>\\n' }}" + ASK + "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN = (
    LOOP
    + "{% if m.role != 'assistant' %}"
    + TURN
    + "{% else %}{% set answer = m.content.split('</think>')[-1].lstrip('\\n') %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.last %}{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{{ '<think>\\n' + (thought if '</think>' in m.content else '') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ answer + '<|im_end|>\\n' }}{% endif %}" + ASK + START
)
PHI = LOOP + "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}" + ASK + "{{ '<|assistant|>\\n' }}{% endif %}"
ZEPHYR = (
    LOOP + "{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}" + ASK + "{{ '<|assistant|>\\n' }}{% endif %}"
)
ALPACA = (
    LOOP + "{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}"
    "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}{% endif %}"
    + ASK
    + "{{ '### Response:\\n' }}{% endif %}"
)


class Format(NamedTuple):
    """A template, its special tokens (the last is eos, a bos is the first), and what it writes for `MESSAGES`."""

    template: str | None
    special: tuple[str, ...]
    written: str
    system: bool = True
    pieces: str = ""

    @property
    def tokenizer(self):
        """With SentencePiece's spaces where the model has them, else a byte-level BPE that takes newlines together."""
        lines = pre_tokenizers.Split(Regex("\n+"), "isolated")
        byte_level = trained(pre_tokenizers.Sequence([lines, smollm()]))
        pipeline = sentencepiece(self.pieces) if self.pieces else byte_level
        pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        names = {"eos": self.special[-1]} | ({"bos": self.special[0]} if "bos_token" in (self.template or "") else {})
        return Tokenizer(pipeline, names, self.template)

    @property
    def messages(self):
        return MESSAGES if self.system else MESSAGES[1:]


MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is 1?"},
    {"role": "assistant", "content": "the film"},
    {"role": "user", "content": "and 2?"},
    {"role": "assistant", "content": "the theme"},
]
FORMATS = {
    "ChatML": Format(
        CHATML, ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is 1?<|im_end|>\n"
        "<|im_start|>assistant\nthe film<|im_end|>\n<|im_start|>user\nand 2?<|im_end|>\n"
        "<|im_start|>assistant\nthe theme<|im_end|>\n",
    ),
    "Llama 2": Format(
        LLAMA_2, ("<s>", "</s>"),
        "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nwhat is 1? [/INST] the film </s>"
        "<s>[INST] and 2? [/INST] the theme </s>",
        pieces="normalizer",
    ),
    "Llama 3": Format(
        LLAMA_3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nwhat is 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nthe film<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nand 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nthe theme<|eot_id|>",
    ),
    "Mistral": Format(
        MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>"),
        "<s>[INST] what is 1?[/INST] the film</s>[INST] and 2?[/INST] the theme</s>",
        system=False, pieces="first",
    ),
    "Gemma": Format(
        GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<bos><start_of_turn>user\nwhat is 1?<end_of_turn>\n<start_of_turn>model\nthe film<end_of_turn>\n"
        "<start_of_turn>user\nand 2?<end_of_turn>\n<start_of_turn>model\nthe theme<end_of_turn>\n",
        system=False, pieces="never",
    ),
    "Qwen": Format(
        QWEN, ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is 1?<|im_end|>\n"
        "<|im_start|>assistant\nthe film<|im_end|>\n<|im_start|>user\nand 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nthe theme<|im_end|>\n",
    ),
    "Phi": Format(
        PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|system|>\nbe brief<|end|>\n<|user|>\nwhat is 1?<|end|>\n<|assistant|>\nthe film<|end|>\n"
        "<|user|>\nand 2?<|end|>\n<|assistant|>\nthe theme<|end|>\n",
        pieces="always",
    ),
    "Zephyr": Format(
        ZEPHYR, ("<s>", "</s>"),
        "<|system|>\nbe brief</s>\n<|user|>\nwhat is 1?</s>\n<|assistant|>\nthe film</s>\n"
        "<|user|>\nand 2?</s>\n<|assistant|>\nthe theme</s>\n",
        pieces="normalizer",
    ),
    "Alpaca": Format(
        ALPACA, ("<|endoftext|>",),
        "be brief\n\n### Instruction:\nwhat is 1?\n\n### Response:\nthe film<|endoftext|>\n\n"
        "### Instruction:\nand 2?\n\n### Response:\nthe theme<|endoftext|>\n\n",
    ),
    "none": Format(
        None, ("<|endoftext|>",),
        "System:\nbe brief\n\nUser:\nwhat is 1?\n\nAssistant:\nthe film<|endoftext|>\n\n"
        "User:\nand 2?\n\nAssistant:\nthe theme<|endoftext|>\n\n",
    ),
}  # fmt: skip
