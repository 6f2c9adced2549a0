"""A small task, tokenizer and decoder, and a count of the tokens that a decoder processes."""

from contextlib import contextmanager
from dataclasses import replace

import torch

from minillm import Tokenizer
from minillm.data.tasks import LabelledText, Task
from minillm.decoder import Embedding
from tests.decoders import STYLES, random_decoder
from tests.training.tokenizer_training import NAMES, TEMPLATE, smollm, trained

TRAIN = [LabelledText(f"film {index}", index % 2) for index in range(20)]
TASK = Task("films", "Review: {text}\nSentiment:", (" negative", " positive"), TRAIN, TRAIN[:2], TRAIN[:2])
TOKENIZER = Tokenizer(trained(smollm()), NAMES, TEMPLATE)
DECODER = random_decoder(replace(STYLES["Llama"], vocabulary=TOKENIZER.vocabulary, context_length=1024))


@contextmanager
def tokens_processed():
    """A list that receives the number of tokens of every batch that any decoder embeds."""
    processed = []

    def count(module, inputs, _):
        if isinstance(module, Embedding):
            processed.append(inputs[0].numel())

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield processed
    finally:
        handle.remove()
