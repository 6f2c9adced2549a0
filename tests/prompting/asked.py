"""A small task, tokenizer and decoder, and a count of the tokens that a decoder processes."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

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


def answering(*ids, context=700):
    """A decoder whose blocks do nothing: each of these ids follows the one before, the first a newline."""
    decoder = random_decoder(replace(STYLES["Llama, untied"], vocabulary=TOKENIZER.vocabulary, context_length=context))
    with torch.no_grad():
        decoder.head.weight.zero_()
        for block in decoder.blocks:
            block.attention.out.weight.zero_()
            block.feed_forward.down.weight.zero_()
        for token, successor in pairwise([*TOKENIZER.encode("\n"), *ids]):
            decoder.head.weight[successor] += 9 * decoder.norm(decoder.embed.weight[token])
    return decoder


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
