"""A page with two adapters of a small random base, whose tokens are bytes."""

import socket
import threading

import pytest
import torch
import uvicorn
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers

from minillm import Decoder, DecoderConfig, Tokenizer, adapt
from minillm.play.page import Page
from minillm.play.server import application


@pytest.fixture(scope="package")
def base():
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "es", "<|end|>"]
    pipeline = Pipeline(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[("e", "s")]))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.tiny(vocabulary=258, context_length=512)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return decoder, Tokenizer(pipeline, {"eos": "<|end|>"}, template)


@pytest.fixture(scope="package")
def random_lora(base):
    """Makes a LoRA that changes the base: the same at each call."""

    def make():
        torch.manual_seed(0)
        lora = adapt.LoRA(base[0], r=2)
        with torch.no_grad():
            for parameter in lora.trainable().values():
                parameter += 0.2 * torch.randn_like(parameter)
        return lora.eval()

    return make


@pytest.fixture(scope="package")
def page(base, random_lora):
    return Page("small", *base, [("lora", random_lora()), ("prefix", adapt.PrefixTuning(base[0], 5).eval())])


@pytest.fixture
def served(page):
    """Serves the page in a thread; returns its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        app = application(page, "right", {host})
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://{host}/#right"
        server.should_exit = True
        thread.join()
