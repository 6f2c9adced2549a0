"""Eight queries to eight LoRAs in one batch, and eight to one of them: check first, then time.

A batch whose rows use different adapters multiplies by the base's matrices once, and each row adds its own update
(`minillm/adapters/family.py`); with one LoRA for all rows, its update is added to all at once. Before the timing, the
batch must give the same logits as its rows one by one, each with its own LoRA. SmolLM2 processes prompts of the reviews
without gradients; the LoRAs have rank 8 on query and value and random factors.
"""

from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, check, cores, multiplies_bfloat16, write_json
from benchmarks.reviews import reviews
from benchmarks.sides import Side, at_work, run, take_turns
from minillm.errors import InputError

ONE = "one LoRA for all"
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}  # relative to the norm of the logits


class Queries:
    """A base with LoRAs and prompts, row i with LoRA i; a single LoRA runs without a family."""

    def __init__(self, prompts: list[list[int]], members: int, precision: str):
        import torch

        from benchmarks.minillm_side import frozen_base
        from minillm.adapt import Family, LoRA
        from minillm.data.batches import pad_right

        torch.manual_seed(0)
        body = frozen_base(precision).decoder
        loras = {str(index): LoRA(body, r=8, alpha=16, targets=("query", "value")) for index in range(members)}
        for lora in loras.values():
            for name, parameter in lora.trainable().items():
                if name.endswith(".b"):
                    torch.nn.init.normal_(parameter, std=0.02)
        self.family, self.names, self.precision = Family(body, loras).eval(), list(loras), precision
        self.ids, self.last = pad_right(prompts)

    def answer(self, times: int) -> Any:
        """The logits after each prompt, with all rows in one batch."""
        import torch

        from minillm.runtime.device import autocast

        with torch.no_grad(), autocast(torch.device("cpu"), self.precision):
            for _ in range(times):
                if len(self.names) == 1:
                    logits = self.family[self.names[0]](self.ids)
                else:
                    logits = self.family(self.ids, self.names)
        return logits[torch.arange(len(self.ids)), self.last].float().numpy()

    def one_by_one(self) -> Any:
        """Each row in a separate pass with its own LoRA."""
        import numpy as np
        import torch

        from minillm.runtime.device import autocast

        with torch.no_grad(), autocast(torch.device("cpu"), self.precision):
            rows = [
                self.family[name](row[None, : last + 1])[0, -1].float().numpy()
                for name, row, last in zip(self.names, self.ids, self.last.tolist(), strict=True)
            ]
        return np.stack(rows)


def compare(precision: str, prompts: list[list[int]], rounds: int, passes: int, threads: int) -> Comparison:
    """The mixed batch next to the plain one, with `passes` forward passes per round."""
    many = f"{len(prompts)} LoRAs"
    members = {many: len(prompts), ONE: 1}
    sides = [Side(name, Queries, {"prompts": prompts, "members": count, "precision": precision})
             for name, count in members.items()]  # fmt: skip
    with at_work(sides, threads) as workers:
        mixed = workers[0]
        found, expected = mixed.ask("answer", 1), mixed.ask("one_by_one")
        errors = {many: check(many, {"logits": found}, {"logits": expected}, TOLERANCES[precision])}
        take_turns(workers, "answer", [passes], float, "warming up")
        turns = take_turns(workers, "answer", [passes] * rounds, float, precision)
    return Comparison(f"{len(prompts)} queries in one batch, {precision}", "", ONE, turns, errors)


def main(rounds: int = 15, passes: int = 3, queries: int = 8, threads: int = cores(), json: Path | None = None) -> None:
    """Both batches, in turns.

    Args:
        rounds: Rounds of each side.
        passes: Forward passes per round.
        queries: Rows of the batch, and number of LoRAs.
        threads: CPU threads of each side.
        json: Write all rounds of all sides to this file.
    """
    if queries < 2:
        raise InputError(f"queries must be at least 2, got {queries}")
    prompts, comparisons = reviews(queries).prompts, []
    for precision in ("float32", "bfloat16") if multiplies_bfloat16() else ("float32",):
        comparisons.append(compare(precision, prompts, rounds, passes, threads))
        print(comparisons[-1].table(), end="\n\n")
        slower = 1 / comparisons[-1].ratios()[0].of_medians
        print(f"{queries} LoRAs take {slower:.2f} times as long as one", end="\n\n", flush=True)
    if json is not None:
        write_json(json, {"rounds": rounds, "passes": passes, "queries": queries, "threads": threads}, comparisons)


if __name__ == "__main__":
    run(main, __doc__)
