"""A pretraining run that takes a second."""

import pytest

from minillm.lab.pretrain import Pretrain

TEXT = "she sells sea shells by the sea shore; the shells she sells are surely sea shells.\n" * 17


@pytest.fixture
def run(tmp_path):
    (tmp_path / "shells.txt").write_text(TEXT)
    return Pretrain(
        data=tmp_path / "shells.txt", preset="nano", tokenizer="characters", steps=6, device="cpu", eval_every=2,
        max_length=96, out=tmp_path / "out",
    )  # fmt: skip
