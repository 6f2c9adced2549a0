"""A small SentencePiece-like tokenizer: BPE with byte fallback, as transformers converts Llama 2's."""

from tokenizers import AddedToken, decoders, models, normalizers, processors, trainers
from tokenizers import Tokenizer as Pipeline
from transformers.convert_slow_tokenizer import generate_merges

from minillm.tokenizer import Tokenizer
from tests.training.tokenizer_training import TEXT

START = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
NAMES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
TEMPLATE = "{% for message in messages %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"


def scored_pieces():
    """Pieces with the scores of SentencePiece's BPE: 0, -1, ... in the order of the merges, then the characters, and
    runs of spaces with one score for all, as in Llama 2 and Mistral."""
    trainer = trainers.BpeTrainer(vocab_size=140, show_progress=False)
    learner = Pipeline(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.train_from_iterator([TEXT, " the   theme,  the film", "é -- --- 12 12"], trainer)
    vocabulary = learner.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: (len(piece) == 1, vocabulary[piece]))
    ranked = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    return ranked | {"▁" * length: -1e9 for length in range(2, 6)}


def sentence_pieces(space=True):
    """The tokenizer, with two user-defined tokens; `space` starts every text with an additional space."""
    scores = scored_pieces()
    vocabulary = {token: index for index, token in enumerate([*START, *scores])}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    pipeline = Pipeline(models.BPE(vocabulary, generate_merges(vocabulary, scores), **options))
    replace = normalizers.Replace(" ", "▁")
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space else replace
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    pipeline.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if space else []))
    pipeline.add_special_tokens(START[:3])
    pipeline.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "[NAME]")])
    pipeline.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return Tokenizer(pipeline, NAMES, TEMPLATE)


def metadata(**changes):
    """The pieces in the metadata of a GGUF file, as llama.cpp's converter writes them."""
    scores = scored_pieces()
    described = {"model": "llama", "tokens": [*START, *scores], "scores": [0.0] * len(START) + list(scores.values())}
    described |= {"token_type": [2, 3, 3] + [6] * 256 + [1] * len(scores), **changes}
    return {f"tokenizer.ggml.{key}": value for key, value in described.items() if value is not None}
