"""The model card of an adapter: README.md in the form of the Hugging Face hub, metadata in YAML and then Markdown."""

import json
from collections.abc import Mapping
from pathlib import Path

from minillm.adapt.description import Description
from minillm.runtime.files import commit

CARD = "README.md"
LIBRARY = "library_name: minillm"
ON_THE_HUB = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""The names on the hub of the bases of `minillm pull`."""


def write_card(directory: Path, description: Description, metrics: Mapping[str, float | int] | None = None) -> None:
    """Write README.md, unless the directory has one that is no model card of minillm."""
    path = directory / CARD
    if not path.exists() or LIBRARY in path.read_text("utf-8", errors="replace"):
        with commit(directory) as new:
            new.text(CARD, card(description, directory.name, metrics or {}))


def card(description: Description, name: str, metrics: Mapping[str, float | int]) -> str:
    """What the adapter is, how it was trained, how it is used, and what was measured."""
    method = f"{description.method} ({json.dumps(description.options)})"
    about = f"{method} for {description.base_name or 'a base'}, trained with minillm {description.minillm}."
    license_ = "It holds only the difference from its base, whose license applies to the two together."
    parts = [_metadata(description), f"# {name}", f"{about} {license_}"]
    if description.command is not None:
        parts.append(f"Trained by\n\n```bash\n{description.command}\n```")
    if description.prompt is not None:
        chat = ", as a message in the chat template of the base" if description.chat else ""
        parts.append(f"The prompt{chat}:\n\n```text\n{description.prompt}\n```")
    if description.labels is not None:
        parts.append(f"Labels: {', '.join(label.strip() for label in description.labels)}")
    parts += ["## Use", _use(description, name)]
    if metrics:
        shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for name, value in metrics.items()}
        rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in shown.items()]
        parts += ["## Measurements", "\n".join(["| measure | value |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _metadata(description: Description) -> str:
    """The metadata; a JSON string is one of YAML too. The hub refuses a base that is not named as on the hub."""
    base, task = description.base_name or "", "text-generation" if description.labels is None else "text-classification"
    on_the_hub = ON_THE_HUB.get(base, base.removeprefix("hf:") if base.startswith("hf:") else None)
    first = [] if on_the_hub is None else [f"base_model: {json.dumps(on_the_hub)}"]
    return "\n".join(["---", *first, LIBRARY, f"pipeline_tag: {task}", f"tags: [adapter, {description.method}]", "---"])


def _use(description: Description, name: str) -> str:
    if description.labels is not None:
        return (
            f'```python\nimport minillm\n\nclassifier = minillm.TextClassifier.load("{name}")\n'
            'print(classifier.predict(["a text"]))\n```'
        )
    base = description.base_name or "BASE"
    return f'```bash\nminillm generate "a text" --base {base} --adapter {name}\n```'
