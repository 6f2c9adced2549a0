"""Greedy decoding of SmolLM2 by minillm and by transformers, and by llama.cpp (Q4_1) if xllamacpp is installed.

All sides continue the same texts, one at a time and in a batch, by as many tokens. minillm and transformers load
float32 weights and must choose the same first tokens; minillm then multiplies one row by weights in float16, and with
`quantise` by those of the file in 4 bits and inputs in bfloat16. The perplexity of reviews shows what that costs.
"""

import json as json_format
import math
import urllib.request
from bisect import bisect
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, cores, write_json
from benchmarks.reviews import BASE, reviews
from benchmarks.sides import Side, at_work, run, take_turns
from minillm.errors import InputError

PEER = "transformers, float32"
Rows = list[list[int]]


class Minillm:
    """`minillm.generate`, with the memory setting of `minillm generate`."""

    def __init__(self, tokens: int, quantise: int | None = None, device: str = "cpu"):
        from minillm import load
        from minillm.runtime.device import keep_freed_memory

        keep_freed_memory()
        self.tokens, self.decoder, self.device = tokens, load(BASE, quantise=quantise)[0].to(device), device

    def decode(self, rows: Rows) -> Rows:
        import torch

        from minillm import generate

        ids = torch.tensor(rows, device=self.device)
        return generate(self.decoder, ids, max_new_tokens=self.tokens)[:, len(rows[0]) :].tolist()


class Transformers:
    def __init__(self, tokens: int, device: str = "cpu"):
        from benchmarks.peer_side import peer

        model: Any = peer(tuned=False).to(device).eval()
        self.tokens, self.model, self.device = tokens, model, device

    def decode(self, rows: Rows) -> Rows:
        import torch

        ids, count = torch.tensor(rows, device=self.device), self.tokens
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )  # fmt: skip
        return found[:, ids.shape[1] :].tolist()


class LlamaCpp:
    """The server of llama.cpp on the GGUF file as it is, one request at a time."""

    def __init__(self, tokens: int, threads: int):
        from minillm.hub.pull import pull

        llama_cpp: Any = import_module("xllamacpp")
        options = llama_cpp.CommonParams()
        options.model.path, options.n_ctx, options.n_parallel = str(pull(BASE)), 1024, 1
        options.cpuparams.n_threads, options.warmup = threads, False
        self.tokens, self.server = tokens, llama_cpp.Server(options)

    def decode(self, rows: Rows) -> Rows:
        asked = {"prompt": rows[0], "n_predict": self.tokens, "temperature": 0, "ignore_eos": True}
        body = json_format.dumps(asked | {"cache_prompt": False, "return_tokens": True}).encode()
        address, kind = f"{self.server.listening_address}/completion", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, body, kind)) as found:
            return [json_format.loads(found.read())["tokens"]]


def compare(rows: int, prompt: int, tokens: int, rounds: int, threads: int, device: str = "cpu") -> Comparison:
    """`rounds` batches of this many rows, after one that is not timed."""
    from benchmarks import peer_side

    peer_side.directory()  # converts the weights once, before several processes start
    ids = [token for each in reviews(500).prompts for token in each]
    texts = [ids[start : start + prompt] for start in range(0, rows * prompt * (rounds + 1), prompt)]
    batches = [texts[start : start + rows] for start in range(0, len(texts), rows)]
    options = {"tokens": tokens, "device": device}
    sides = [Side("minillm", Minillm, options), Side(PEER, Transformers, options)]
    if device == "cpu":
        sides.append(Side("minillm, 4 bits", Minillm, {"tokens": tokens, "quantise": 4}))
    if device == "cpu" and rows == 1 and find_spec("xllamacpp") is not None:
        sides.append(Side("llama.cpp, Q4_1", LlamaCpp, {"tokens": tokens, "threads": threads}))
    with at_work(sides, threads) as workers:
        ours, theirs, *_ = ([row[0] for row in worker.ask("decode", batches[0])] for worker in workers)
        if ours != theirs:
            raise InputError(f"the sides choose different first tokens: {ours} and {theirs}")
        found = take_turns(workers, "decode", batches[1:], lambda batch: len(batch) * tokens, f"batch of {rows}")
    return Comparison(f"greedy decoding, batch of {rows}", "tokens", PEER, found)


def perplexities(count: int) -> tuple[float, ...]:
    """Of the first reviews with `count` tokens in all: in float32, with the products of one row, in 8 and in 4 bits."""
    import torch
    import torch.nn.functional as F

    from minillm import load
    from minillm.data.batches import pad_right
    from minillm.fast import decoding
    from minillm.runtime.progress import progress

    def product(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.in_4_bits:
            return by_kernel(self, x)
        # float16 numbers multiplied in float32: the same sums, but fast for many rows.
        weight, bias = self.matrices
        out = F.linear(x.half().float(), weight.float()).half().float()
        return out if bias is None else out + bias

    by_kernel, decoding.FEW, decoding.Products.forward = decoding.Products.forward, 1 << 30, product
    quantised = [load(BASE, quantise=bits)[0] for bits in (8, 4)]
    decoder, prompts = load(BASE)[0].eval(), reviews(1000).prompts
    ends = list(accumulate(len(prompt) - 1 for prompt in prompts))
    rows = sorted(prompts[: bisect(ends, count - 1) + 1], key=len)
    sides = decoder, *map(decoding.prepare, (decoder, *quantised))
    losses = [0.0] * len(sides)
    with torch.no_grad():
        for start in progress(range(0, len(rows), 16), desc="perplexity", unit="batch"):
            ids, last = pad_right(rows[start : start + 16])
            real = torch.arange(1, ids.shape[1]) <= last[:, None]
            for side, model in enumerate(sides):
                logits = model(ids)[:, :-1][real]
                losses[side] += float(F.cross_entropy(logits, ids[:, 1:][real], reduction="sum"))
    total = sum(len(row) - 1 for row in rows)
    return tuple(math.exp(loss / total) for loss in losses)


def main(
    batch_size: int = 16,
    prompt: int = 16,
    tokens: int = 64,
    rounds: int = 5,
    perplexity_tokens: int = 20_000,
    threads: int = cores(),
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """One row, then a batch, then the perplexity.

    Args:
        batch_size: Rows of the batch.
        prompt: Tokens of a text.
        tokens: Tokens to generate.
        rounds: Texts, or batches, that every side continues.
        perplexity_tokens: Tokens of reviews for the perplexity; 0 leaves it out.
        threads: CPU threads of each side; one side runs at a time.
        device: The device of minillm and transformers, cpu or cuda; 4 bits and llama.cpp are for the CPU.
        json: Write all rounds of all sides to this file.
    """
    comparisons = [compare(rows, prompt, tokens, rounds, threads, device) for rows in (1, batch_size)]
    for comparison in comparisons:
        print(comparison.table(), end="\n\n")
    if perplexity_tokens:
        wide, *others = perplexities(perplexity_tokens)
        print(f"perplexity in float32: {wide:.3f}")
        for name, found in zip(("with the products of one row", "in 8 bits", "in 4 bits"), others, strict=True):
            print(f"{name}: {found:.3f}, which is {found / wide - 1:+.4%}")
    if json is not None:
        settings = {"prompt": prompt, "tokens": tokens, "rounds": rounds, "threads": threads, "device": device}
        write_json(json, settings, comparisons)


if __name__ == "__main__":
    run(main, __doc__)
