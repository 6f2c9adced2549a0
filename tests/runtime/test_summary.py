"""The summary of a decoder or a method counts every parameter once."""

import pytest

from minillm import Decoder, DecoderConfig
from minillm.adapt import LoRA

pytestmark = pytest.mark.checked


def test_a_summary_counts_every_parameter_once_and_gives_the_trainable_share():
    decoder = Decoder(DecoderConfig.tiny())
    method = LoRA(decoder, r=2)
    trained = sum(parameter.numel() for parameter in method.trainable().values())
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert decoder.summary().splitlines()[-1].split() == ["total", f"{count:,}", "100.00%", f"{4 * count:,}"]
    count += trained
    lines = [line.split() for line in method.summary().splitlines()]
    assert lines[0] == ["layer", "shape", "dtype", "layers", "parameters", "trainable", "bytes"]
    assert ["blocks.*.attention.query.a", "2", "x", "24", "float32", "2", "96", "100.00%", "384"] in lines
    assert lines[-1] == ["total", f"{count:,}", f"{trained / count:.2%}", f"{4 * count:,}"]
