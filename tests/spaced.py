"""Tokenizers that put a space before a text, in the three ways there are, built in memory."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerheal.models.load import wrap
from steerheal.models.model import ChatModel

import tiny

SCHEMES = ("legacy", "first", "always")
"""A space before every piece between special tokens; before the text's beginning; before every
piece that does not begin with one."""
LETTERS = [chr(code) for code in range(32, 127)]
WORDS = ("care", "cruel", "true", "false", "it", "is", "wrong", "unfair", "liberty", "social")
PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
"""A template whose turns are plain text, so that an answer follows a bracket."""


def tokenizer(
    scheme: str, template: str = tiny.CHATML, pieces: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Letters, a few words with and without a space before them, and more pieces."""
    spaced = [letter.replace(" ", "▁") for letter in LETTERS]
    words = [f"{space}{word}" for word in WORDS for space in ("", "▁")]
    known = dict.fromkeys(["<unk>", "\n", *spaced, *words, *pieces])
    # A long piece is likelier than its letters, so that it is taken wherever it fits.
    raw = Tokenizer(
        models.Unigram([(piece, -10.0 - 0.1 * len(piece)) for piece in known], unk_id=0)
    )
    space = normalizers.Replace(" ", "▁")
    if scheme == "legacy":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    else:
        raw.normalizer = space
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ("<pad>", "<s>", "</s>", tiny.START, tiny.END)
    raw.add_special_tokens([AddedToken(name, special=True) for name in names])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    assert len(made) <= tiny.SIZES["vocab_size"]
    return made


def chat(scheme: str, template: str = tiny.CHATML, pieces: tuple[str, ...] = ()) -> ChatModel:
    return wrap(tiny.net(), tokenizer(scheme, template, pieces), name=f"tiny-{scheme}")
