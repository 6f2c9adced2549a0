"""Mutated files of every format: each loads as its bytes say or raises InputError, within 10 s and 1 GiB.

200 mutations of each format by default and 10,000 in all under `-m slow`, each drawn from its own seed. They run in a
forked process, so that the end of the process, which a library in Rust or C causes, is seen too. A file with a sha256
must be refused, or load what was saved.
"""

import json
import os
import random
import shutil
import signal
import struct
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import minillm
from minillm import InputError, TextClassifier, adapt
from minillm.data.tables import Table
from minillm.hub.gguf_export import export
from minillm.hub.huggingface_tokenizer import read_tokenizer
from minillm.hub.peft import export_peft, import_peft
from minillm.runtime.reading import sealed
from minillm.training.checkpoints import CHECKPOINT, restore_checkpoint, save_checkpoint
from minillm.training.tokenizers import train_tokenizer
from tests.training.small_loop import trained_loop, untrained_loop

resource = pytest.importorskip("resource", reason="Windows has no fork and no limit of memory")
SECONDS, MEMORY = 10, 2**30
TEXT = "a small text, and another"
EXTREMES = (
    0, -1, 1, 3, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**400, 0.0, -0.5, 1e-320, 1e308, True, None, "",
    "x" * 100_000, "\ud800", "\U0001f600", "\0", "<s>", [], [[]], {}, {"a": {}}, [2**62] * 4, "NaN", "llama", "F8_E4M3",
)  # fmt: skip
TEXTS = (
    "[" * 100_000, '{"a":' * 5000, "9" * 5000, "NaN", "1e999", "\\ud800", "\ufeff", '"', "\n", ",", "\0", "{{", "{%",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{{ messages.x.y }}", "{{ raise_exception(1) }}",
)  # fmt: skip


# Mutations.


def of_bytes(draw, data):
    """A flipped bit, another run of bytes, a number, bytes that are lost, added or repeated: often in the header."""
    place = draw.randrange(max(1, min(len(data), draw.choice((40, 400, len(data))))))
    size = draw.choice((1, 4, 8, 40))
    number = draw.choice((0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, len(data)))
    new = draw.choice(
        (
            bytes([data[place] ^ 1 << draw.randrange(8)]) if data else b"",
            bytes(size), b"\xff" * size, draw.randbytes(size), struct.pack("<Q", number), draw.choice(TEXTS).encode(),
        )
    )  # fmt: skip
    kind = draw.choice(("replace", "replace", "replace", "replace", "cut", "insert", "truncate", "extend", "repeat"))
    return {
        "replace": data[:place] + new + data[place + len(new) :], "cut": data[:place] + data[place + size :],
        "insert": data[:place] + new + data[place:], "truncate": data[:place], "extend": data + new,
        "repeat": data[: place + size] + data[place:],
    }[kind]  # fmt: skip


def of_json(draw, found):
    """A value that is lost, duplicated under another name, or replaced by an extreme one, at any depth."""
    while True:
        names = list(found) if isinstance(found, dict) else list(range(len(found)))
        name = draw.choice(names)
        inner = found[name]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
            break
        found = inner
    kind = draw.choice(("replace", "replace", "replace", "delete", "swap"))
    if kind == "delete" and len(found) > 1:
        del found[name]
    elif kind == "swap":
        other = draw.choice(names)
        found[name], found[other] = found[other], found[name]
    else:
        found[name] = deepcopy(draw.choice((*EXTREMES, f"{inner}x", [inner], {"x": inner}, found[draw.choice(names)])))


def mutated(draw, path):
    """The content of a file, changed."""
    data = path.read_bytes()
    tensors = path.suffix == ".safetensors"
    if path.suffix not in (".json", ".jsonl", ".safetensors") or draw.random() < 0.4:
        return of_bytes(draw, data)
    end = (
        8 + struct.unpack("<Q", data[:8])[0] if tensors else data.find(b"\n") if path.suffix == ".jsonl" else len(data)
    )
    found = json.loads(data[8 if tensors else 0 : end])
    for _ in range(draw.choice((1, 1, 1, 3)) if found else 0):
        of_json(draw, found)
    text = json.dumps(found)
    if draw.random() < 0.1:
        text = '{"a": 1, "a": 2, ' + text[1:]
    return (struct.pack("<Q", len(text)) if tensors else b"") + text.encode() + data[end:]


# Readers: each raises InputError, or checks what it loads against the bytes.


def run(decoder, tokenizer):
    """A forward pass, and the use of the tokenizer."""
    decoder(torch.arange(3)[None] % decoder.config.vocabulary)
    if tokenizer is not None:
        tokenizer.decode(tokenizer.prompt(TEXT) + tokenizer.encode(TEXT))
        assert tokenizer.stop is not None
        decoder(torch.tensor([tokenizer.prompt(TEXT)]))


def load_config(place, known):
    decoder, tokenizer = minillm.load(place)
    found, config = json.loads((place / "config.json").read_text()), decoder.config
    pairs = [(found["vocab_size"], config.vocabulary), (found["num_hidden_layers"], config.layers)]
    pairs += [(found["hidden_size"], config.width), (found["num_attention_heads"], config.heads)]
    assert all(one == other for one, other in pairs)
    run(decoder, tokenizer)


def load_tokenizer(place, known):
    tokenizer = read_tokenizer(place)
    found = json.loads((place / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    ids = {token: tokenizer.pipeline.token_to_id(token) for token in (found["model"]["vocab"] | added)}
    assert ids == found["model"]["vocab"] | added
    tokenizer.limit(known[0].config.vocabulary)
    run(known[0], tokenizer)


def load_weights(place, known):
    decoder, _ = minillm.load(place)
    data = (place / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:end])["model.norm.weight"]
    start, stop = entry["data_offsets"]
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[entry["dtype"]]
    stored = torch.frombuffer(bytearray(data[end + start : end + stop]), dtype=kind).float()
    assert torch.equal(decoder.norm.weight.view(torch.int32), stored.view(torch.int32))
    run(decoder, None)


def load_adapter(place, known):
    method = adapt.load(known[0], place)
    assert torch.equal(method(torch.arange(5)[None]), known[2](torch.arange(5)[None]))


def load_peft(place, known):
    import_peft(known[0], place)(torch.arange(5)[None])


def load_checkpoint(place, known):
    trained, loop = known[3:]
    restore_checkpoint(place, loop, {"seed": 0})
    (tensors, rest), (saved, saved_rest) = loop.state(), trained.state()
    assert rest == saved_rest
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)


def load_classifier(place, known):
    TextClassifier.load(place, base=known[:2]).predict_proba([TEXT])


def load_table(place, known):
    (path,) = place.iterdir()
    for row in Table(path).read("text", "label").rows:
        for name, value in row.values.items():
            text = row.text(name) if name in ("text", "label") else ""
            assert (
                value == json.loads(row.source)[name] or text is None
                if path.suffix == ".jsonl"
                else (value in row.source or value.replace('"', '""') in row.source)
            )


def load_template(place, known):
    read_tokenizer(place).chat([{"role": "user", "content": TEXT}])


FORMATS = {
    "config.json": ("model", load_config), "tokenizer.json": ("model", load_tokenizer),
    "model.safetensors": ("model", load_weights), "model.gguf": ("gguf", lambda place, known: run(
        *minillm.load(place / "model.gguf"))),
    "adapter.json": ("adapter", load_adapter), "adapter.safetensors": ("adapter", load_adapter),
    "adapter_config.json": ("peft", load_peft), "adapter_model.safetensors": ("peft", load_peft),
    CHECKPOINT: ("checkpoint", load_checkpoint), "classifier.json": ("classifier", load_classifier),
    "rows.csv": ("csv", load_table), "rows.jsonl": ("jsonl", load_table),
    "chat_template.jinja": ("model", load_template),
}  # fmt: skip
"""The file that is mutated, its directory, and its reader."""
PAIRS = ("adapter.json", "adapter.safetensors", "adapter_config.json", "adapter_model.safetensors")
"""Two files of one format."""


def specimens(root):
    """A valid directory of each kind under `root`; returns what the readers know."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer("bpe", [TEXT * 9], 270)
    tokenizer.chat_template = "{% for message in messages %}<|{{ message.role }}|>{{ message['content'] }}{% endfor %}"
    sizes = {"layers": 1, "width": 8, "heads": 2, "kv_heads": 1, "feed_forward_width": 8}
    decoder = minillm.Decoder(minillm.DecoderConfig.tiny(vocabulary=tokenizer.vocabulary, **sizes)).eval()
    minillm.save(decoder, tokenizer, root / "model")
    (root / "model" / "chat_template.jinja").write_text(tokenizer.chat_template)
    (root / "gguf").mkdir()
    export(decoder, tokenizer, root / "gguf" / "model.gguf")
    method = adapt.LoRA(decoder, r=1).eval()
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.normal_()
    method.save(root / "adapter")
    export_peft(method, root / "peft")
    loop = trained_loop()
    save_checkpoint(root / "checkpoint", loop.state(), {"settings": {"seed": 0}})
    classifier = TextClassifier(base=(decoder, tokenizer), method="few-shot", shots=1, device="cpu")
    classifier.fit(["good", "bad"], [1, 0]).save(root / "classifier")
    for name, lines in {"csv": 'text,label\n"a, ""b""",x\nb,y\n', "jsonl": '{"text": "a", "label": 1}\n' * 2}.items():
        (root / name).mkdir()
        (root / name / f"rows.{name}").write_text(lines)
    return decoder, tokenizer, method, loop, untrained_loop()


def one_case(name, number, root, known):
    """`refused`, `loaded`, or the exception of one mutation of a file."""
    directory, read = FORMATS[name]
    draw, place, valid = random.Random(f"{name} {number}"), root / "mutated", root / directory / name
    try:
        content = mutated(draw, valid)
        if name == "classifier.json" and draw.random() < 0.7:
            found = json.loads(valid.read_text())
            found.pop("sha256")
            of_json(draw, found)
            content = sealed(found).encode()
        (place / name).write_bytes(content)
        read(place, known)
    except InputError:
        return "refused"
    except BaseException as problem:
        return f"raised {type(problem).__name__}: {problem}".replace("\n", " ")[:200]
    return "loaded"


def in_a_child(name, numbers, root, known):
    """[number, outcome, seconds] of each mutation, and the memory in KiB; a list ends where the process ended."""
    shutil.rmtree(root / "mutated", ignore_errors=True)
    shutil.copytree(root / FORMATS[name][0], root / "mutated")
    log, child = root / "log", os.fork()
    if child == 0:
        try:
            log_cases(log, name, numbers, root, known)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return [line.split("\t") for line in log.read_text().splitlines()]


def log_cases(log, name, numbers, root, known):
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with log.open("w") as file:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit_memory()
        for number in numbers:
            print(number, end="\t", file=file, flush=True)
            signal.alarm(SECONDS)
            start = time.perf_counter()
            outcome = one_case(name, number, root, known)
            print(outcome, f"{time.perf_counter() - start:.3f}", sep="\t", file=file, flush=True)
        print("", "KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="\t", file=file)


def limit_memory():
    """Allow MEMORY more bytes than now, where the system tells how many there are."""
    if (statm := Path("/proc/self/statm")).exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    return root, specimens(root)


def check(name, numbers, valid):
    found = in_a_child(name, numbers, *valid)
    assert [line for line in found if line[1] not in ("refused", "loaded", "KiB")] == [], found[-1]
    counts = Counter(line[1] for line in found)
    assert (counts.pop("KiB", 0), counts.total()) == (1, len(numbers))
    assert counts["refused"] > 0.3 * len(numbers)
    worst = max(float(line[2]) for line in found[:-1])
    print(f"{name}: {dict(counts)}, at most {worst:.2f} s, {int(found[-1][2]) / 1024:.0f} MiB")


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_loads_as_its_bytes_say_or_is_refused(name, valid):
    check(name, range(100 if name in PAIRS else 200), valid)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_mutated_files(name, valid):
    check(name, range(1000, 1770), valid)
