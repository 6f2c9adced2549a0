"""Programs that torch.compile makes of operations with kernels, described by `python -m tests.kernels.compiled`.

It runs outside of pytest, where every call checks shapes: torch.compile would trace the checks.
"""

import json
import warnings

import torch
from torch import Tensor

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.kernels import _measured
from minillm.lab.trust import OurKernels
from minillm.operations import BACKENDS, FAST, TRITON, backend, gelu, lora, rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH = 13
ROWS = {("this GPU", "rms_norm", torch.float32): [((64, WIDTH), 2.0), ((4096, WIDTH), 0.5)]}


def forced(hidden: Tensor, weight: Tensor) -> Tensor:
    with backend("triton"):
        return 2 * rms_norm(hidden, weight, 1e-5)


def chosen(hidden: Tensor, weight: Tensor) -> Tensor:
    """A norm, a gelu and LoRA, whose operands are cast."""
    out = gelu(2 * rms_norm(hidden, weight, 1e-5))
    return lora(out, weight[:, None] * weight, None, weight[None], weight[:, None], 0.5)


def by_sizes(hidden: Tensor) -> Tensor:
    return hidden + 1 if _measured._won("this GPU", "rms_norm", hidden.dtype, tuple(hidden.shape)) else hidden


class Graphs:
    """A backend of torch.compile that records the graph and runs it unchanged."""

    def __init__(self):
        self.programs: list[list[str]] = []

    def __call__(self, graph, _):
        self.programs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph


def same_numbers(program) -> bool:
    """Whether a program and its compiled form agree bit for bit, output and gradients; a graph break is an error."""
    found = []
    for run in (program, torch.compile(program, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        hidden = torch.randn(5, WIDTH, device=DEVICE, requires_grad=True)
        weight = torch.randn(WIDTH, device=DEVICE, requires_grad=True)
        out = run(hidden, weight)
        out.square().sum().backward()
        found.append((out, hidden.grad, weight.grad))
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def programs_by_backend() -> list[str]:
    """The gelu in each compiled program, after running every backend twice."""
    graphs, hidden, weight = Graphs(), torch.ones(5, WIDTH, device=DEVICE), torch.ones(WIDTH, device=DEVICE)
    run = torch.compile(chosen, backend=graphs, fullgraph=True)
    for name in 2 * BACKENDS:
        with backend(name):
            run(hidden, weight)
    kinds = {"triton": "minillm.feed_forward", "fast": "gelu", "plain": "tanh"}
    return [
        next(kind for kind, mark in kinds.items() if any(mark in target for target in program))
        for program in graphs.programs
    ]


def decoders_by_backend() -> dict[str, bool]:
    """Whether a whole decoder, whose blocks are recomputed for their gradient, is one graph with the same logits."""
    found, ids = {}, torch.arange(6, device=DEVICE).view(2, 3)
    for name in (FAST, TRITON):
        config = DecoderConfig.tiny(layers=1, heads=1, kv_heads=1, width=6, feed_forward_width=7, vocabulary=7)
        decoder = Decoder(config).to(DEVICE).train()
        decoder.recompute = True
        with backend(name):
            logits = torch.compile(decoder, backend="aot_eager", fullgraph=True)(ids)
            logits.sum().backward()
            found[name] = torch.allclose(logits, decoder(ids), atol=1e-6)
    return found


def answers_by_sizes() -> tuple[list[bool], int]:
    """The choice for each number of rows, and the number of compiled programs."""
    graphs = Graphs()
    run = torch.compile(by_sizes, backend=graphs, fullgraph=True)
    answers = [bool(run(torch.zeros(rows, WIDTH)).any()) for rows in (5, 6, 7, 3000, 2000, 9)]
    return answers, len(graphs.programs)


def main() -> None:
    warnings.filterwarnings("error", message="Dynamo")
    _measured.MEASURED.update(ROWS)
    with OurKernels() as kernels:
        forced(torch.ones(2, WIDTH, device=DEVICE), torch.ones(WIDTH, device=DEVICE))
    found = {"kernel": kernels.seen, "forced": same_numbers(forced), "chosen": same_numbers(chosen)}
    found |= {"by backend": programs_by_backend(), "by sizes": answers_by_sizes(), "decoders": decoders_by_backend()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
