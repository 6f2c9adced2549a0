"""`minillm adapter`: what one does with adapter files without training. Nothing is changed in place."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minillm.errors import InputError

if TYPE_CHECKING:
    from minillm.decoder import Decoder
    from minillm.tokenizer import Tokenizer

BASE = "smollm2-135m-instruct"
Place = Annotated[Path, tyro.conf.Positional]


def inspect(adapter: Place) -> None:
    """Say what an adapter is, from its files alone: method, options, tensors, bytes.

    Args:
        adapter: The adapter's directory.
    """
    from safetensors import safe_open

    from minillm.adapt.description import TENSORS, describe

    description = describe(adapter)
    size = sum(path.stat().st_size for path in adapter.iterdir())
    print(f"{description.method}, {size:,} bytes, by minillm {description.minillm}")
    print(f"options: {json.dumps(description.options)}")
    print(f"base: {len(description.base)} weights, known by their sha256")
    with safe_open(str(adapter / TENSORS), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
            how = "difference to the base" if name in description.differences else file.get_slice(name).get_dtype()
            print(f"  {name}  {tuple(file.get_slice(name).get_shape())}  {how}")


def diff(adapter: Place, other: Place, base: str = BASE) -> None:
    """Compare two adapters of one base: their options, and how far each tensor of one is from the other's.

    Args:
        adapter: An adapter's directory.
        other: Another one's.
        base: Their base: a pulled name, tiny, a directory or a .gguf file.
    """
    from minillm.adapt import load

    decoder, _ = _base(base)
    one, two = (load(decoder, place, allow_noop=True) for place in (adapter, other))
    print(f"{type(one).__name__} {json.dumps(one.options())}\n{type(two).__name__} {json.dumps(two.options())}")
    left, right = one.state(), two.state()
    for name in dict.fromkeys([*left, *right]):
        if name not in left or name not in right:
            print(f"  {name}  only in {adapter if name in left else other}")
        elif left[name].shape != right[name].shape:
            print(f"  {name}  {tuple(left[name].shape)} and {tuple(right[name].shape)}")
        else:
            distance, norm = (left[name] - right[name]).double().norm(), left[name].double().norm()
            print(f"  {name}  |difference| {distance:.4g}, |{adapter.name}| {norm:.4g}")


def verify(adapter: Place, base: str = BASE) -> None:
    """Load an adapter strictly onto its base, and say what it does there.

    Args:
        adapter: The adapter's directory.
        base: Its base: a pulled name, tiny, a directory or a .gguf file.
    """
    from minillm.adapt import load

    decoder, tokenizer = _base(base)
    method = load(decoder, adapter, tokenizer=tokenizer)
    print(f"{adapter} is whole: a {type(method).__name__} of {len(method.state())} tensors on {base}")


def merge(adapter: Place, target: Place, base: str = BASE) -> None:
    """Write base and adapter as one model, a directory in Hugging Face's layout, and say what rounding it costs.

    Args:
        adapter: The adapter's directory.
        target: The directory to write.
        base: The adapter's base: a pulled name, tiny, a directory or a .gguf file.
    """
    import torch

    from minillm.adapt import load, merge_rounding
    from minillm.adapt import merge as merged
    from minillm.hub import save

    decoder, tokenizer = _base(base)
    method = load(decoder, adapter, tokenizer=tokenizer)
    together = merged(method)
    save(together, tokenizer, target)
    probe = torch.arange(min(16, decoder.config.vocabulary))[None]
    for dtype, change in merge_rounding(method, probe).items():
        print(
            f"held in {str(dtype).removeprefix('torch.')}, merging moves a logit of the probe by {change:.3g} at most"
        )
    print(f"written: {target}")


def extract(
    tuned: Annotated[str, tyro.conf.Positional],
    target: Place,
    base: str = BASE,
    r: int | None = None,
    energy: float | None = None,
) -> None:
    """Find the LoRA that comes nearest to a fully fine-tuned model, and say what it leaves out.

    Args:
        tuned: A model's directory or .gguf file, or the directory of a FineTune adapter.
        target: The adapter's directory to write.
        base: The base of both: a pulled name, tiny, a directory or a .gguf file.
        r: The rank of each update.
        energy: Or the share of each update's energy to keep, up to 1.
    """
    from minillm.adapt import extract as extracted
    from minillm.adapt import load
    from minillm.adapt.description import DESCRIPTION

    decoder, tokenizer = _base(base)
    is_adapter = (Path(tuned) / DESCRIPTION).exists()
    after = load(decoder, tuned, tokenizer=tokenizer) if is_adapter else _base(tuned)[0]
    found = extracted(decoder, after, r=r, energy=energy)
    found.lora.save(target, tokenizer=tokenizer)
    _say_errors(found.errors)
    if found.left_out:
        print(f"changed, but in no LoRA matrix: {len(found.left_out)} parameters, {found.left_out[0]} first")
    print(f"written: {target}")


def resize(adapter: Place, target: Place, base: str = BASE, r: int | None = None, energy: float | None = None) -> None:
    """Write a LoRA at another rank, and say what it leaves out.

    Args:
        adapter: The LoRA's directory.
        target: The directory to write.
        base: Its base: a pulled name, tiny, a directory or a .gguf file.
        r: The new rank.
        energy: Or the share of each update's energy to keep, up to 1.
    """
    from minillm.adapt import LoRA, load
    from minillm.adapt import resize as resized

    decoder, tokenizer = _base(base)
    method = load(decoder, adapter, tokenizer=tokenizer)
    if not isinstance(method, LoRA):
        raise InputError(f"{adapter} is a {type(method).__name__}; a LoRA has a rank that can be changed")
    found = resized(method, r=r, energy=energy)
    found.lora.save(target, tokenizer=tokenizer)
    _say_errors(found.errors)
    print(f"written: {target}")


def export_peft(adapter: Place, target: Place, base: str = BASE) -> None:
    """Write an adapter as peft keeps its own.

    Args:
        adapter: The adapter's directory.
        target: The directory to write: adapter_config.json and adapter_model.safetensors.
        base: Its base: a pulled name, tiny, a directory or a .gguf file.
    """
    from minillm.adapt import load
    from minillm.hub.peft import export_peft as written

    decoder, tokenizer = _base(base)
    written(load(decoder, adapter, tokenizer=tokenizer), target, base_name=base)
    print(f"written: {target}")


def import_peft(source: Place, target: Place, base: str = BASE) -> None:
    """Write one of peft's adapters as minillm's.

    Args:
        source: The directory with adapter_config.json and adapter_model.safetensors.
        target: The adapter's directory to write.
        base: Its base: a pulled name, tiny, a directory or a .gguf file.
    """
    from minillm.hub.peft import import_peft as read

    decoder, tokenizer = _base(base)
    read(decoder, source).save(target, tokenizer=tokenizer)
    print(f"written: {target}")


def _base(name: str) -> "tuple[Decoder, Tokenizer | None]":
    from minillm.hub import load
    from minillm.lab.embedded import base_path

    return load(base_path(name))


def _say_errors(errors: dict[str, float]) -> None:
    worst = max(errors, key=lambda path: errors[path])
    mean = sum(errors.values()) / len(errors)
    print(f"{len(errors)} matrices; of |dW| is left out {mean:.1%} on average, {errors[worst]:.1%} at most ({worst})")


ADAPTER_COMMANDS = {
    "inspect": inspect, "diff": diff, "verify": verify, "merge": merge, "extract": extract, "resize": resize,
    "export-peft": export_peft, "import-peft": import_peft,
}  # fmt: skip
