"""Tokens in context: what a reader scores is what the model would have written there."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import spaced
from steerheal.config import HealSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.measure import coherence, damage, forced_choice, likelihood, protocol, slot
from steerheal.measure.vignettes import Vignette
from steerheal.models import gguf
from steerheal.models.chat import common, decode, document_ids, prompt_ids, text_ids, told
from steerheal.models.generate import Draw, generate
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.pipeline.surroundings import notes
from steerheal.records import FOUNDATIONS

import tiny

ASKED = [
    Vignette(id=f"v{i}", condition="other", foundation=name, text=text)
    for i, (name, text) in enumerate([("care", "You see it."), ("liberty", "You see a longer one")])
]
SPANNING = ("▁is▁cruel", '"care', ":true", ":▁true")
"""Pieces that span the end of a prefill and the beginning of an answer."""
KINDS = [
    (scheme, template, pieces)
    for scheme in spaced.SCHEMES
    for template in (tiny.CHATML, spaced.PLAIN)
    for pieces in ((), SPANNING)
]
kinds = pytest.mark.parametrize(("scheme", "template", "pieces"), KINDS)


def encoded(chat: ChatModel, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False))


def logs(chat: ChatModel, ids: Sequence[int]) -> Tensor:
    """Log-probabilities after every token, from one plain forward."""
    with torch.no_grad():
        return chat.net(input_ids=torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)


def worth(chat: ChatModel, whole: Sequence[int], start: int, stop: int | None = None) -> float:
    """Log-probability of the ids of a text from a place on."""
    table, stop = logs(chat, whole), len(whole) if stop is None else stop
    return sum(table[i - 1, whole[i]].item() for i in range(start, stop))


def shown(chat: ChatModel, turns: list[tuple[str, str]]) -> str:
    return chat.template.render(turns, reply=True)


def prefill_nll(chat: ChatModel, text: str, prefill: str, end: int) -> float:
    """Nats per token of the prefill's own ids, up to where the answers part from it."""
    stem = encoded(chat, text + prefill)[:end]
    start = common(encoded(chat, text), stem)
    return -worth(chat, stem, start) / (len(stem) - start)


# ── one text after another ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", spaced.SCHEMES)
@pytest.mark.parametrize(
    "text", ["care", " care", "  two spaces", "{", " cruel and hurts", "\n x", "a<|im_end|>b"]
)
def test_a_text_that_continues_another_has_the_tokens_of_its_place(scheme: str, text: str) -> None:
    chat = spaced.chat(scheme)
    before = encoded(chat, "it is}\n")
    whole = encoded(chat, "it is}\n" + text)
    assert whole[: len(before)] == before
    assert text_ids(chat, text) == whole[len(before) :]


@pytest.mark.parametrize("scheme", spaced.SCHEMES)
@pytest.mark.parametrize("text", ["care", " care", "  two", "it is wrong", " it is", "x<s>y", ""])
def test_text_goes_to_tokens_and_back_with_every_space(scheme: str, text: str) -> None:
    chat = spaced.chat(scheme)
    whole = decode(chat, text_ids(chat, text))
    # One scheme writes a space after a special token, whether the text has one or not.
    assert whole == (text.replace("<s>y", "<s> y") if scheme != "first" else text)


def test_a_byte_tokenizer_has_the_same_tokens_in_and_out_of_context() -> None:
    chat = tiny.chat()
    for text in ("care", " a", "\n\nx", "</think>", "", "é\u2028"):
        assert text_ids(chat, text) == encoded(chat, text)
        assert decode(chat, text_ids(chat, text)) == text


def test_a_special_token_that_stops_nothing_stands_in_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    ids = [*text_ids(chat, "a"), 257, *text_ids(chat, "b")]
    assert decode(chat, [*ids, chat.end_of_turn()]) == f"a{tiny.START}b"
    logits = ChatModel.logits

    def insisting(self: ChatModel, hidden: Tensor) -> Tensor:
        found = logits(self, hidden)
        found[..., 257] += 1000
        return found

    monkeypatch.setattr(ChatModel, "logits", insisting)
    (said,) = generate(chat, [Draw("x")], SamplingSettings(tokens=2, temperature=0))
    assert said.text == tiny.START * 2
    assert not said.ended


def test_answers_are_told_apart_after_what_all_of_them_share() -> None:
    chat = spaced.chat("legacy", spaced.PLAIN, pieces=("▁is▁cruel",))
    found = told(chat, "x", "it is", [" cruel", " unfair"])
    stem = encoded(chat, shown(chat, [("user", "x")]) + "it is")
    words = chat.tokenizer.convert_ids_to_tokens
    assert found.shared == stem[:-1]
    assert [words(list(rest)) for rest in found.rests] == [["▁is▁cruel"], ["▁is", "▁unfair"]]
    assert found.leads == (1, 2)
    assert found.slot == len(encoded(chat, shown(chat, [("user", "x")]) + "it")) - len(
        encoded(chat, shown(chat, [("user", "x")]))
    )


# ── every reader ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@kinds
def test_likelihood_scores_the_reasons_as_they_follow_the_prefill(
    scheme: str, template: str, pieces: tuple[str, ...]
) -> None:
    chat = spaced.chat(scheme, template, pieces)
    rows = likelihood.read(chat, ASKED)

    def plain(text: str) -> tuple[list[float], float, float]:
        asked = shown(chat, [("user", likelihood.QUESTION.format(vignette=text))])
        stem = encoded(chat, asked + likelihood.PREFILL)
        wholes = [
            encoded(chat, asked + likelihood.PREFILL + likelihood.REASONS[n]) for n in FOUNDATIONS
        ]
        own = [common(stem, whole) for whole in wholes]
        start = min(own)
        begun = {tuple(whole[: place + 1]) for whole, place in zip(wholes, own, strict=True)}
        mass = sum(math.exp(worth(chat, ids, start)) for ids in begun)
        nll = prefill_nll(chat, asked, likelihood.PREFILL, start)
        return [worth(chat, whole, start) for whole in wholes], mass, nll

    neutral = torch.tensor([plain(act)[0] for act in likelihood.NEUTRAL["other"]]).mean(0)
    for row, vignette in zip(rows, ASKED, strict=True):
        scores, mass, nll = plain(vignette.text)
        assert row.score == pytest.approx((torch.tensor(scores) - neutral).tolist(), abs=2e-3)
        assert row.p_ans_any == pytest.approx(mass, rel=1e-3)
        assert row.nll_prefill == pytest.approx(nll, abs=2e-3)


@kinds
def test_the_canary_reads_the_answers_that_go_on_from_its_opening(
    scheme: str, template: str, pieces: tuple[str, ...]
) -> None:
    chat = spaced.chat(scheme, template, pieces)
    statements = ["Water is wet.", "A much longer statement about a stone"]
    for row, statement in zip(coherence.read(chat, statements), statements, strict=True):
        asked = shown(chat, coherence._turns(statement))
        stem = encoded(chat, asked + coherence.OPENING)
        wholes = [encoded(chat, asked + coherence.OPENING + answer) for answer in coherence.ANSWERS]
        far = max(common(stem, whole) for whole in wholes)
        firsts = {whole[far] for whole in wholes if common(stem, whole) == far}
        mass = logs(chat, stem[:far])[-1, sorted(firsts)].exp().sum().item()
        assert far == len(stem)
        assert row.p_ans_any == pytest.approx(mass, rel=1e-3)
        assert row.nll_prefill == pytest.approx(
            prefill_nll(chat, asked, coherence.OPENING, far), abs=2e-3
        )


@pytest.mark.long
@pytest.mark.parametrize("scheme", spaced.SCHEMES)
@pytest.mark.parametrize("template", [tiny.CHATML, spaced.PLAIN])
@pytest.mark.parametrize("joined", [(), tuple(f'"{n}' for n in protocol.load().words())])
def test_a_forced_choice_reads_the_labels_as_they_follow_its_opening(
    scheme: str, template: str, joined: tuple[str, ...]
) -> None:
    chat, wording = spaced.chat(scheme, template, joined), protocol.load()
    found = forced_choice.read(chat, ASKED, wording, think=0)
    between = slot.interruption(chat, wording)
    for row, vignette in zip(found.rows, ASKED, strict=True):
        scores, masses, nlls = [], [], []
        for labels in (wording.labels, wording.labels[::-1]):
            asked = shown(chat, [("user", wording.turn(vignette.text, labels))])
            asked += wording.think_open + between
            stem = encoded(chat, asked + wording.prefill)
            wholes = [encoded(chat, asked + wording.prefill + word) for word in wording.words()]
            start = min(common(stem, whole) for whole in wholes)
            table = logs(chat, stem[:start])[-1]
            scores.append(table[[whole[start] for whole in wholes]])
            masses.append(scores[-1].exp().sum().item())
            nlls.append(prefill_nll(chat, asked, wording.prefill, start))
            assert (start < len(stem)) is bool(joined)
        assert row.score == pytest.approx(torch.stack(scores).mean(0).tolist(), abs=2e-3)
        assert row.p_ans_any == pytest.approx(sum(masses) / 2, rel=1e-2)
        assert row.nll_prefill == pytest.approx(sum(nlls) / 2, abs=2e-3)


def test_a_label_that_joins_the_opening_beside_others_that_do_not_is_refused() -> None:
    chat = spaced.chat("first", pieces=('"care',))
    with pytest.raises(UserError, match=r"begins these labels with the same token: fairness"):
        forced_choice.read(chat, ASKED, protocol.load(), think=0)


# ── where a text begins ─────────────────────────────────────────────────────────────────────────


def opening(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What stands before every paragraph of the plain prose."""
    seen: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(
        damage, "token_logprobs", lambda _, pairs: (seen.extend(pairs), [torch.zeros(1)])[1]
    )
    damage.plain_perplexity(chat)
    assert len({tuple(start) for start, _ in seen}) == 1
    return seen[0][0]


def told_to_begin(template: str = tiny.CHATML, **fields: object) -> ChatModel:
    tok = spaced.tokenizer("first", template)
    for name, value in fields.items():
        setattr(tok, name, value)
    return wrap(tiny.net(), tok, name="tiny-bos")


def test_plain_prose_begins_with_the_bos_that_the_tokenizer_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = told_to_begin(add_bos_token=True)
    assert opening(chat, monkeypatch) == [chat.tokenizer.bos_token_id]


def test_plain_prose_begins_with_all_that_a_post_processor_puts_before_a_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tok = tiny.tokenizer()
    tok._tokenizer.post_processor = TemplateProcessing(
        single="<pad> <|im_start|> $A <|im_end|>",
        special_tokens=[("<pad>", 256), ("<|im_start|>", 257), ("<|im_end|>", 258)],
    )
    assert opening(wrap(tiny.net(), tok, name="post"), monkeypatch) == [256, 257]


def test_plain_prose_begins_with_the_bos_that_the_template_begins_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = told_to_begin("{{ bos_token }}" + tiny.CHATML)
    assert opening(chat, monkeypatch) == [chat.tokenizer.bos_token_id]


def test_without_a_bos_plain_prose_stands_after_an_end_of_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()  # its BOS opens every turn: a turn marker, no beginning of a text
    assert opening(chat, monkeypatch) == [chat.end_of_turn()]


@pytest.mark.long
def test_a_paragraph_has_the_tokens_of_a_beginning() -> None:
    for scheme in spaced.SCHEMES:
        chat = spaced.chat(scheme)
        assert document_ids(chat, "care it")[1] == encoded(chat, "care it")
        assert chat.tokenizer.convert_ids_to_tokens(document_ids(chat, "care")[1]) == ["▁care"]


@pytest.mark.parametrize(
    ("template", "adds", "noted"),
    [
        (tiny.CHATML, True, True),
        ("{{ bos_token }}" + tiny.CHATML, True, False),
        (tiny.CHATML, False, False),
        ("{{ bos_token }}" + tiny.CHATML, False, False),
    ],
)
def test_a_template_without_the_bos_that_the_tokenizer_asks_for_is_noted(
    template: str, adds: bool, noted: bool
) -> None:
    chat = told_to_begin(template, add_bos_token=adds)
    found = [note for note in notes(chat, HealSettings()) if "begins every text with <s>" in note]
    assert bool(found) is noted
    assert (prompt_ids(chat, "x")[0] == chat.tokenizer.bos_token_id) is ("bos" in template)


@pytest.mark.parametrize("asked", [True, False, None])
def test_a_gguf_that_asks_for_a_bos_gets_it_before_every_text(
    asked: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "converted"
    tiny.net().save_pretrained(folder)
    spaced.tokenizer("first").save_pretrained(folder)
    header = {} if asked is None else {"tokenizer.ggml.add_bos_token": asked}
    monkeypatch.setattr(gguf, "_header", lambda _file, _template: header)
    monkeypatch.setattr(gguf, "_converted", lambda _file: folder)
    net, tok, name = gguf.open_gguf(tmp_path / "m.gguf", torch.float32, "m.gguf")
    chat = wrap(net, tok, name=name)
    start = chat.tokenizer.bos_token_id if asked else chat.end_of_turn()
    assert opening(chat, monkeypatch) == [start]
    assert any("begins every text" in note for note in notes(chat, HealSettings())) is bool(asked)
