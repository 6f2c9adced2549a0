"""`minillm check`: the ladder of trust on one's own machine."""

import os
import sys
from pathlib import Path

FAILED = 1


def check(
    config: str = "smollm2-135m",
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    kernels: bool = False,
    out: Path | None = None,
) -> None:
    """Compute every operation, and the decoder adapted and not, twice: differences, numpy, torch. Under a minute.

    Exit code 1 if something is further off than rounding explains.

    Args:
        config: tiny, vaswani, gpt2, gpt2-medium, smollm2-135m, llama-2-7b, ..., or a model that minillm can load.
        dtype: What torch computes in: float32, bfloat16 or float64.
        device: auto, cpu, cuda or mps.
        seed: The seed of the numbers.
        threads: CPU threads (default: one a core).
        kernels: Check our GPU kernels too; where there is no GPU, they are interpreted.
        out: The directory for check.json (default: nothing is written).
    """
    from minillm.lab.check import CheckSettings, failed, table
    from minillm.lab.check import check as climb
    from minillm.runtime.device import pick_device, use_threads

    if kernels and pick_device(device).type != "cuda":
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which nothing has done yet
    described = climb(CheckSettings(config, dtype, device, seed, use_threads(threads), kernels), out)
    print(table(described))
    if out is not None:
        print(f"\nwritten: {out / 'check.json'}")
    wrong = [f"{row['what']} ({row['rung']}: {row['part']})" for row in failed(described)]
    if wrong:
        print(f"minillm: computed wrong: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(FAILED)
