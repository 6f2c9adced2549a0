"""`minillm adapter` and `minillm export`: work on adapter files, without training. No file is changed in place."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from minillm import hub
from minillm.adapt import Adaptation, LoRA
from minillm.adapt.description import DESCRIPTION, TENSORS, Usage, describe
from minillm.adapters.extract import Extracted, extract, resize
from minillm.adapters.load import load
from minillm.adapters.merge import merge, merge_rounding
from minillm.errors import InputError
from minillm.hub.gguf_export import export
from minillm.hub.gguf_lora import export_lora
from minillm.hub.options import BaseOptions
from minillm.hub.peft import export_peft, import_peft
from minillm.runtime.files import check_unused
from minillm.runtime.options import Directory, Positional, PrintOptions
from minillm.runtime.reading import open_tensors
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class AdapterOptions(PrintOptions):
    """The adapter that a command works on."""

    adapter: Positional[Path]
    """The directory of the adapter."""


@dataclass(kw_only=True)
class OutputOptions(PrintOptions):
    """The result of a command."""

    out: Path
    """The directory, or the GGUF file, to write."""
    overwrite: bool = False
    """Replace an existing file, or write to a directory that has files."""

    def __post_init__(self):
        check_unused(self.out, self.overwrite)

    def show_saved(self, *lines: str, **results: Any) -> None:
        """Print lines about the result, and where it is saved."""
        self.show("\n".join([*lines, f"saved: {self.out}"]), {**results, "out": self.out})


@dataclass(kw_only=True)
class RankOptions:
    """The rank of a low-rank approximation."""

    r: int | None = None
    """The rank of each update."""
    energy: float | None = None
    """Instead of a rank: the share of the squared norm of each update to keep, up to 1."""


@dataclass(kw_only=True)
class Inspect(AdapterOptions):
    """Print an adapter's method, options, tensors and size; `verify` checks them.

    Example: minillm adapter inspect my.adapter
    """

    def run(self) -> None:
        description = describe(self.adapter)
        size = sum(path.stat().st_size for path in self.adapter.iterdir())
        used = {field.name: value for field in fields(Usage) if (value := getattr(description, field.name))}
        lines = [
            f"{description.method}, {size:,} bytes, saved by minillm {description.minillm}",
            f"options: {json.dumps(description.options)}",
            f"base: {len(description.base)} weights, identified by their sha256",
            *(f"{name.replace('_', ' ')}: {json.dumps(value, ensure_ascii=False)}" for name, value in used.items()),
        ]
        tensors = {}
        with open_tensors(self.adapter / TENSORS) as file:
            for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
                how = "difference to the base, in bytes" if name in description.differences else ""
                tensors[name] = {
                    "shape": file.get_slice(name).get_shape(),
                    "dtype": how or file.get_slice(name).get_dtype(),
                }
        lines += [f"  {name}  {tuple(one['shape'])}  {one['dtype']}" for name, one in tensors.items()]
        described = {"method": description.method, "bytes": size, "options": description.options, **used}
        self.show("\n".join(lines), described | {"tensors": tensors})


@dataclass(kw_only=True)
class Diff(BaseOptions):
    """Compare two adapters of one base: their options and the norm of the difference of each tensor.

    Example: minillm adapter diff one.adapter two.adapter
    """

    adapter: Positional[Path]
    """The directory of the first adapter."""
    other: Positional[Path]
    """The directory of the second adapter."""

    def run(self) -> None:
        decoder, _ = self.load_base()
        one, two = (load(decoder, place, allow_noop=True) for place in (self.adapter, self.other))
        lines = [f"{type(method).__name__} {json.dumps(method.options())}" for method in (one, two)]
        left, right, found = one.state(), two.state(), {}
        for name in dict.fromkeys([*left, *right]):
            if name not in left or name not in right:
                found[name] = {"only_in": self.adapter if name in left else self.other}
                lines.append(f"  {name}  only in {found[name]['only_in']}")
            elif left[name].shape != right[name].shape:
                found[name] = {"shapes": [tuple(left[name].shape), tuple(right[name].shape)]}
                lines.append(f"  {name}  shapes {found[name]['shapes'][0]} and {found[name]['shapes'][1]}")
            else:
                distance, norm = (left[name] - right[name]).double().norm().item(), left[name].double().norm().item()
                found[name] = {"difference": distance, "norm": norm}
                lines.append(f"  {name}  |difference| {distance:.3g}, |{self.adapter.name}| {norm:.3g}")
        self.show("\n".join(lines), {"options": [one.options(), two.options()], "tensors": found})


@dataclass(kw_only=True)
class Verify(AdapterOptions, BaseOptions):
    """Check that an adapter is complete and loads on its base.

    Example: minillm adapter verify my.adapter --base tiny
    """

    def run(self) -> None:
        method, _ = _adapted(self, self.adapter)
        found = {"method": type(method).__name__, "tensors": len(method.state()), "base": self.base}
        self.show(f"OK: {found['method']}, {found['tensors']} tensors, loads on {self.base}", found)


@dataclass(kw_only=True)
class Merge(AdapterOptions, OutputOptions, BaseOptions):
    """Merge an adapter into its base, write the model in Hugging Face's layout, and print the rounding errors.

    Example: minillm adapter merge my.adapter --out merged
    """

    def run(self) -> None:
        method, tokenizer = _adapted(self, self.adapter)
        hub.save(merge(method), tokenizer, self.out)
        probe = torch.arange(min(16, method.config.vocabulary))[None]
        changes = {str(dtype).removeprefix("torch."): one for dtype, one in merge_rounding(method, probe).items()}
        text = "logits of the merged model in {} differ from base and adapter by up to {:.3g}"
        self.show_saved(*(text.format(*change) for change in changes.items()), largest_change=changes)


@dataclass(kw_only=True)
class Extract(RankOptions, OutputOptions, BaseOptions):
    """Approximate a fine-tuned model by the nearest LoRA, and print the approximation error.

    Example: minillm adapter extract tuned --r 8 --out extracted.adapter
    """

    tuned: Positional[str]
    """The fine-tuned model (a directory or .gguf file), or the directory of a FineTune adapter."""

    def run(self) -> None:
        decoder, tokenizer = self.load_base()
        is_adapter = (Path(self.tuned) / DESCRIPTION).exists()
        tuned = load(decoder, self.tuned, tokenizer=tokenizer) if is_adapter else hub.load(self.tuned)[0]
        found = extract(decoder, tuned, r=self.r, energy=self.energy)
        if isinstance(tuned, Adaptation):
            found.lora.usage = tuned.usage
        _save(found, tokenizer, self)


@dataclass(kw_only=True)
class Resize(AdapterOptions, RankOptions, OutputOptions, BaseOptions):
    """Change the rank of a LoRA, and print the approximation error.

    Example: minillm adapter resize my.adapter --r 4 --out small.adapter
    """

    def run(self) -> None:
        method, tokenizer = _adapted(self, self.adapter)
        if not isinstance(method, LoRA):
            raise InputError(f"{self.adapter} is a {type(method).__name__}; only the rank of a LoRA can be changed")
        found = resize(method, r=self.r, energy=self.energy)
        found.lora.usage = method.usage
        _save(found, tokenizer, self)


def _adapted(options: BaseOptions, adapter: Path) -> tuple[Adaptation, Tokenizer | None]:
    """The adapter on its base, and the tokenizer of the base."""
    decoder, tokenizer = options.load_base()
    return load(decoder, adapter, tokenizer=tokenizer), tokenizer


def _save(found: Extracted, tokenizer: Tokenizer | None, options: OutputOptions) -> None:
    found.lora.save(options.out, tokenizer=tokenizer)
    errors, mean = found.errors, sum(found.errors.values()) / len(found.errors)
    worst = max(errors, key=lambda path: errors[path])
    lines = [
        f"{len(errors)} matrices; relative error of dW: {mean:.1%} on average, {errors[worst]:.1%} at most ({worst})"
    ]
    if found.left_out:
        lines.append(f"not in the LoRA: {len(found.left_out)} changed parameters, the first is {found.left_out[0]}")
    options.show_saved(*lines, errors=errors, left_out=found.left_out)


@dataclass(kw_only=True)
class ExportPeft(AdapterOptions, OutputOptions, BaseOptions):
    """Convert an adapter to PEFT's format: adapter_config.json and adapter_model.safetensors.

    Example: minillm adapter export-peft my.adapter --out peft.adapter
    """

    def run(self) -> None:
        export_peft(_adapted(self, self.adapter)[0], self.out, base_name=self.base)
        self.show_saved()


@dataclass(kw_only=True)
class ExportGGUF(AdapterOptions, OutputOptions, BaseOptions):
    """Write a LoRA as a GGUF file, for llama.cpp's --lora with the exported base.

    Example: minillm adapter export-gguf my.adapter --out my-lora.gguf
    """

    def run(self) -> None:
        export_lora(_adapted(self, self.adapter)[0], self.out)
        self.show_saved()


@dataclass(kw_only=True)
class ImportPeft(AdapterOptions, OutputOptions, BaseOptions):
    """Convert an adapter from PEFT's format.

    Example: minillm adapter import-peft peft.adapter --out my.adapter
    """

    def run(self) -> None:
        decoder, tokenizer = self.load_base()
        import_peft(decoder, self.adapter).save(self.out, tokenizer=tokenizer)
        self.show_saved()


@dataclass(kw_only=True)
class Export(OutputOptions):
    """Write a model, merged with an adapter if one is given, as a GGUF file in float32.

    Example: minillm export smollm2-135m-instruct --adapter my.adapter --out model.gguf
    """

    base: Positional[str]
    """A pulled model, hf:NAME, a directory in Hugging Face's layout, or a .gguf file; not tiny."""
    adapter: Directory | None = None
    """An adapter of the base."""

    def run(self) -> None:
        decoder, tokenizer = hub.load(self.base)
        if self.adapter is not None:
            decoder = merge(load(decoder, self.adapter, tokenizer=tokenizer))
        export(decoder, tokenizer, self.out)
        self.show_saved()
