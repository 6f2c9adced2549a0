"""Time to the first token of an answer in a conversation with SmolLM2: minillm's kept cache, next to transformers.

transformers processes the whole conversation at each turn, as in the chat example of its documentation. Both sides get
the same messages (minillm's answers), and must choose the same first token.
"""

import time
from itertools import islice
from json import dumps
from pathlib import Path
from typing import Any

from benchmarks.sides import run
from minillm.errors import InputError
from minillm.runtime.files import write_text

BASE = "smollm2-135m-instruct"
QUESTIONS = (
    "What is a language model?", "What is a token?", "And what is attention?", "Why is it masked?", "What is LoRA?",
    "What is a prefix?", "Which of the two has fewer parameters?", "Name one use of it.", "Is it expensive?", "Thanks!",
)  # fmt: skip


def first_tokens(answer_tokens: int, threads: int) -> list[dict[str, Any]]:
    """For each turn: the tokens of its prompt, those that minillm processes, and the seconds of both sides."""
    import torch

    from benchmarks.peer_side import directory, transformers
    from minillm import load
    from minillm.generation import GenerationOptions
    from minillm.prompting.chat_session import ChatSession
    from minillm.runtime.device import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    decoder, tokenizer = load(BASE)
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory(), dtype=torch.float32).eval()
    assert tokenizer is not None
    session, found = ChatSession(decoder, tokenizer, GenerationOptions(max_new_tokens=answer_tokens)), []
    for question in QUESTIONS:
        ids = torch.tensor([tokenizer.chat([*session.messages, {"role": "user", "content": question}])])
        start = time.perf_counter()
        answer = session.answer(question)
        text = "".join(islice(answer, 1))
        ours = time.perf_counter() - start
        start = time.perf_counter()
        with torch.no_grad():
            token = peer.generate(ids, max_new_tokens=1, do_sample=False, attention_mask=torch.ones_like(ids))[0, -1]
        theirs = time.perf_counter() - start
        if not tokenizer.decode([int(token)]).startswith(text):
            raise InputError(f"the sides choose different first tokens at {question!r}")
        list(answer)
        processed = ids.shape[1] - int(session.last["cached_tokens"])
        found.append({"prompt": ids.shape[1], "processed": processed, "minillm": ours, "transformers": theirs})
    return found


def main(answer_tokens: int = 60, threads: int = 2, json: Path | None = None) -> None:
    """Ten turns.

    Args:
        answer_tokens: The maximum length of an answer.
        threads: CPU threads.
        json: Write the figures here.
    """
    found = first_tokens(answer_tokens, threads)
    print("turn  tokens of the prompt  processed  minillm, s  transformers, s")
    for turn, row in enumerate(found, 1):
        figures = f"{row['prompt']:>22}{row['processed']:>11}{row['minillm']:>12.3f}{row['transformers']:>17.3f}"
        print(f"{turn:>4}{figures}")
    if json is not None:
        write_text(json, dumps(found) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
