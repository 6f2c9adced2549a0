"""`minillm lab`: experiments that need nothing but this package."""

from pathlib import Path


def juggler(
    preset: str = "tiny",
    steps: int | None = None,
    problems: int = 300,
    shots: int = 2,
    samples: int = 5,
    temperature: float = 0.7,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    out: Path = Path("juggler"),
    fresh: bool = False,
) -> None:
    """Train a tiny model from nothing on word problems, and ask it for answers at once and step by step.

    Nothing is downloaded. A run that was stopped goes on training where it was.

    Args:
        preset: nano, tiny or small: the model that is trained.
        steps: Training steps in place of the preset's.
        problems: Unseen problems that are asked, for every number of steps that they take.
        shots: Solved examples in a few-shot prompt.
        samples: Chains whose majority is the answer of self-consistency.
        temperature: Of those samples.
        seed: The seed of all that is random.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
        out: The directory for the model and juggler.json.
        fresh: Train again, whatever stands in that directory.
    """
    from minillm.lab.curve import describe
    from minillm.lab.juggler import JugglerSettings, juggle, table
    from minillm.runtime.device import keep_freed_memory, use_threads

    keep_freed_memory()
    use_threads(threads)
    settings = JugglerSettings(preset, steps, problems, shots, samples, temperature, seed)
    found = juggle(settings, out, device=device, fresh=fresh, say=lambda measured: print(describe(measured)))
    print(f"\n{table(found)}")
    print(f"trained in {found['training_seconds']:.0f} s, asked in {found['asking_seconds']:.0f} s")
    print(f"written: {out / 'juggler.json'}")


LAB_COMMANDS = {"juggler": juggler}
