"""Instruments, coherence, free answers, statistics, aggregates."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from steerheal import prompts
from steerheal.config import MeasureSettings, SamplingSettings
from steerheal.errors import UserError
from steerheal.measure import coherence, damage, free, likelihood, summary, vignettes
from steerheal.measure.evaluate import evaluate
from steerheal.measure.fluency import (
    char_repetition,
    distinct,
    perplexity,
    tail_perplexity,
    word_repetition,
)
from steerheal.models.cache import MEMORY_SHARE, RoomyCache
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.hooks import adding
from steerheal.models.model import ChatModel
from steerheal.personas import Axis
from steerheal.records import FOUNDATIONS, CanaryRow, Completion, PersonaRow, Scores, VignetteRow
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, folded
from steerheal.state.values import base, entered

import tiny

# ── vignettes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", vignettes.BUNDLED)
@pytest.mark.parametrize("condition", ["other", "self"])
def test_bundled_vignettes_are_balanced_and_any_prefix_of_sevens_too(
    name: str, condition: str
) -> None:
    rows = vignettes.load(name, condition)
    assert len(rows) >= 140
    counts = dict.fromkeys(FOUNDATIONS, 0)
    for row in rows:
        counts[row.foundation] += 1
    assert min(counts.values()) == max(counts.values()) >= 20
    assert {row.foundation for row in rows[:7]} == set(FOUNDATIONS)


def test_bundled_vignettes_paraphrase_none_of_the_published_ones(shared: Path) -> None:
    def words(text: str) -> set[str]:
        return set(text.lower().strip(".").split())

    published = [
        words(json.loads(line)["text"])
        for file in sorted((shared / "tinymfv").glob("*.jsonl"))
        for line in file.read_text().split("\n")
        if line
    ]
    for name in vignettes.BUNDLED:
        for condition in ("other", "self"):
            for row in vignettes.load(name, condition):
                ours = words(row.text)
                overlap = max(len(ours & other) / len(ours | other) for other in published)
                assert overlap < 0.5, row.text


def test_published_files_load_as_they_are(shared: Path) -> None:
    rows = vignettes.load(str(shared / "tinymfv" / "vignettes_classic_other_violate.jsonl"))
    assert len(rows) == 132
    assert len(vignettes.stratified(rows, 8)) == 56


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "text": "You see"}', "lacks foundation_coarse"),
        ('{"id": "a", "foundation_coarse": "Care", "text": "  "}', "text is empty"),
        ('{"id": "a", "foundation_coarse": "Caer", "text": "x"}', "Perhaps you meant"),
        ("{", "not JSON"),
        ('{"id": "a", "foundation_coarse": "Care", "text": "x"}\n' * 2, "twice"),
        ("", "no vignettes"),
    ],
)
def test_a_wrong_vignette_file_is_one_clear_message(
    tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text(line)
    with pytest.raises(UserError, match=message):
        vignettes.load(str(file))


def test_a_subset_is_stratified_and_refused_when_there_are_too_few() -> None:
    rows = vignettes.load("everyday")
    subset = vignettes.stratified(rows, 3)
    assert len(subset) == 21
    with pytest.raises(UserError, match="per foundation"):
        vignettes.stratified(rows, 500)


# ── likelihood ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3-multimodal", "phi"])
def test_likelihood_scores_equal_the_plain_computation(family: str) -> None:
    chat = tiny.chat(family)
    asked = vignettes.load("everyday")[:3]
    rows = likelihood.read(chat, asked)

    def plain(text: str, reason: str) -> float:
        prompt = prompt_ids(
            chat, likelihood.QUESTION.format(vignette=text), prefill=likelihood.PREFILL
        )
        tail = text_ids(chat, reason)
        with torch.no_grad():
            logs = (
                chat.net(input_ids=torch.tensor([prompt + tail])).logits[0].float().log_softmax(-1)
            )
        places = range(len(prompt) - 1, len(prompt) + len(tail) - 1)
        return sum(logs[place, token].item() for place, token in zip(places, tail, strict=True))

    for row, vignette in zip(rows, asked, strict=True):
        for i, name in enumerate(FOUNDATIONS):
            reason = likelihood.REASONS[name]
            neutral = [plain(act, reason) for act in likelihood.NEUTRAL["other"]]
            expected = plain(vignette.text, reason) - sum(neutral) / len(neutral)
            assert row.score[i] == pytest.approx(expected, abs=2e-3)
        assert sum(row.p) == pytest.approx(1, abs=1e-5)


def test_one_pass_over_doses_equals_a_pass_for_each() -> None:
    chat, asked = tiny.chat(), vignettes.load("everyday")[:4]
    vectors = {1: torch.randn(32, generator=torch.Generator().manual_seed(0))}
    with entered(chat, tiny.steered(vectors, (0.0, 0.5, 2.0))) as reader:
        together = likelihood.sweep(reader, asked)
    for dose, rows in zip((0.0, 0.5, 2.0), together, strict=True):
        with adding(chat, vectors, dose):
            alone = likelihood.read(chat, asked)
        for one, other in zip(rows, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=2e-3)


def test_one_pass_over_gates_equals_a_pass_for_each() -> None:
    chat, asked = tiny.chat(), vignettes.load("everyday")[:4]
    random = torch.Generator().manual_seed(0)
    name = "model.layers.1.mlp.down_proj"
    pair = Pair(torch.randn(2, 48, generator=random), torch.randn(32, 2, generator=random))
    adapter = Adapter({name: pair}, 0.1, 2)
    with entered(chat, [base().folded(adapter, gate) for gate in (0.0, 0.4, 1.0)]) as reader:
        together = likelihood.sweep(reader, asked)
    for gate, rows in zip((0.0, 0.4, 1.0), together, strict=True):
        with folded(chat, [Gated(adapter, gate)]):
            alone = likelihood.read(chat, asked)
        for one, other in zip(rows, alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=2e-3)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    chat = tiny.chat()
    asked = vignettes.load("everyday")[:9]
    together = likelihood.read(chat, asked)
    backwards = likelihood.read(chat, asked[::-1])[::-1]
    for row, other in zip(together, backwards, strict=True):
        assert row.id == other.id
        assert row.score == pytest.approx(other.score, abs=1e-3)


def test_a_likelihood_reading_stays_within_its_memory_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, asked = tiny.chat(), vignettes.load("everyday")[:12]
    whole = likelihood.read(chat, asked)
    looks: list[int] = []
    taken: list[int] = []
    logits, repeat = ChatModel.logits, RoomyCache.batch_repeat_interleave

    def seen(self: ChatModel, hidden: torch.Tensor) -> torch.Tensor:
        looks.append(hidden.shape[:-1].numel())
        return logits(self, hidden)

    def repeated(self: RoomyCache, repeats: int) -> None:
        position = 2 * 4 * 2 * 8 * 4  # bytes: keys and values, 4 blocks, 2 heads of 8 float32
        rows, length = len(self.layers[0].keys), self.layers[0].get_seq_length()
        taken.append(rows * (1 + repeats) * length * position)
        repeat(self, repeats)

    monkeypatch.setattr(ChatModel, "logits", seen)
    monkeypatch.setattr(RoomyCache, "batch_repeat_interleave", repeated)
    monkeypatch.setattr("steerheal.models.score.chunk_of", lambda _: 10)
    free = 10_000_000
    monkeypatch.setattr("steerheal.models.cache.free_bytes", lambda _: free)
    short = likelihood.read(chat, asked)
    assert max(looks) <= 10
    assert max(taken) <= MEMORY_SHARE * free < sum(taken)
    for row, other in zip(short, whole, strict=True):
        assert row.score == pytest.approx(other.score, abs=1e-4)
        assert row.nll_prefill == pytest.approx(other.nll_prefill, abs=1e-5)


@pytest.mark.slow
def test_the_embedded_base_ranks_the_published_vignettes_far_above_chance(shared: Path) -> None:
    chat = tiny.embedded()
    asked = vignettes.load(str(shared / "tinymfv" / "vignettes_classic_other_violate.jsonl"))
    scores = Scores(
        state="base", instrument="likelihood", vignettes=tuple(likelihood.read(chat, asked[::9])),
        canary=tuple(coherence.read(chat, prompts.lines("statements")[:4])), persona=(),
    )  # fmt: skip
    assert summary.summarise(scores, scores, AXIS).values["top1"].value >= 0.45
    mass = [row.p_ans_any for row in scores.canary]
    assert sum(mass) / len(mass) >= 0.9


# ── canary and free answers ─────────────────────────────────────────────────────────────────────


def test_the_canary_reads_the_answer_mass_after_the_opening() -> None:
    chat = tiny.chat()
    rows = coherence.read(chat, ["Water is wet.", "A much longer statement about some stone."])
    prompt = prompt_ids(chat, coherence._turns("Water is wet."), prefill=coherence.OPENING)
    with torch.no_grad():
        logs = chat.net(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    allowed = sorted({text_ids(chat, answer)[0] for answer in coherence.ANSWERS})
    assert rows[0].p_ans_any == pytest.approx(logs[-1, allowed].exp().sum().item(), rel=1e-3)
    slot = len(text_ids(chat, coherence.OPENING))
    forced = [-logs[i - 1, prompt[i]].item() for i in range(len(prompt) - slot, len(prompt))]
    assert rows[0].nll_prefill == pytest.approx(sum(forced) / slot, rel=1e-3)


def test_persona_logodds_is_the_difference_of_two_plain_scores() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    asked = ["evaluate 0", "evaluate 1"]
    answers = free.answers(chat, asked, SamplingSettings(tokens=8), seed=3)
    rows = free.judge(chat, answers, persona)

    def plain(system: str, item: Completion) -> float:
        prompt = prompt_ids(chat, item.prompt, system=system)
        with torch.no_grad():
            logits = chat.net(input_ids=torch.tensor([[*prompt, *item.tokens]])).logits
        logs = logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
        return logs.gather(1, torch.tensor(item.tokens)[:, None]).sum().item()

    for row, item in zip(rows, answers.completions, strict=True):
        expected = plain(persona.positive, item) - plain(persona.negative, item)
        assert row.logodds == pytest.approx(expected / len(item.tokens), abs=1e-4)
        assert row.kl_to_base == pytest.approx(0, abs=1e-6)
        assert row.perplexity == pytest.approx(
            math.exp(-plain("", item) / len(item.tokens)), rel=1e-3
        )


# ── fluency and statistics ──────────────────────────────────────────────────────────────────────


def test_repetition_and_diversity_match_hand_worked_examples() -> None:
    assert word_repetition("a a a a a") == pytest.approx(2 / 3)  # three trigrams, one distinct
    assert word_repetition("one two three four") == 0
    assert char_repetition("abcdefghabcdefgh") == pytest.approx(1 - 8 / 9)
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct("a", 2))
    assert perplexity([-math.log(4)] * 3) == pytest.approx(4)
    assert tail_perplexity([0.0] * 6 + [-1.0, -1.0]) == pytest.approx(math.e)
    assert tail_perplexity([]) == math.inf


# ── aggregates ──────────────────────────────────────────────────────────────────────────────────


def scores(state: str, *, logodds: float, mass: float, care: float, n: int = 24) -> Scores:
    """Synthetic rows with a little noise that both states share."""
    noise = np.random.default_rng(0).normal(0, 0.01, (n, 7))
    rows, canary, persona = [], [], []
    for i in range(n):
        raw = noise[i].copy()
        raw[0] += care
        p = np.exp(raw) / np.exp(raw).sum()
        rows.append(
            VignetteRow(
                id=f"{i}", condition="other", foundation=FOUNDATIONS[i % 7], score=tuple(raw),
                p=tuple(p), p_ans_any=0.1, nll_prefill=1.0,
            )
        )  # fmt: skip
        canary.append(CanaryRow(id=f"{i}", p_ans_any=mass + noise[i, 1] / 9, nll_prefill=0.1))
        item = Completion(prompt=f"{i}", text="x y z", tokens=(1,), dose=0, seed=i, ended=True)
        persona.append(
            PersonaRow(
                completion=item, logodds=logodds + noise[i, 2], perplexity=9.0,
                tail_perplexity=9.0, kl_to_base=0.1, kl_to_previous=0.05,
                word_repetition=0.0, distinct_2=1.0,
            )
        )  # fmt: skip
    return Scores(
        state=state, instrument="likelihood", vignettes=tuple(rows), canary=tuple(canary),
        persona=tuple(persona),
    )  # fmt: skip


AXIS = Axis(foundation="care", sign=1, off_target=("authority",))
BASE = scores("base", logodds=0.0, mass=0.95, care=0.0)
STEERED = scores("steered", logodds=0.4, mass=0.55, care=1.0)
HEALED = scores("healed", logodds=0.3, mass=0.90, care=0.6)


def test_a_healed_state_is_summarised_against_the_base() -> None:
    found = summary.summarise(HEALED, BASE, AXIS)
    assert found.gain.value == pytest.approx(0.3)
    assert found.gain.moved
    assert found.coherence == pytest.approx(0.90 / 0.95, abs=1e-3)
    assert found.cost.value == pytest.approx(0.05 / 0.3, rel=1e-3)
    assert found.delta_nats["care"].value > 0
    assert found.surgical is True
    assert found.kl.value == pytest.approx(0.1)


def test_retain_and_recovered_are_shares_of_the_steered_shift() -> None:
    assert summary.retain(HEALED, STEERED, BASE, AXIS).value == pytest.approx(0.75, abs=1e-6)
    assert summary.recovered(HEALED, STEERED, BASE, AXIS).value == pytest.approx(0.875, abs=1e-3)


def test_what_training_alone_does_is_not_retained() -> None:
    control = scores("control", logodds=0.1, mass=0.95, care=0.0)
    net = summary.retain(HEALED, STEERED, BASE, AXIS, control=control)
    assert net.value == pytest.approx((0.3 - 0.1) / 0.4, abs=1e-6)
    found = summary.tested(HEALED, BASE, 0, AXIS, control)
    assert found.control is not None and found.over_control is not None
    assert found.gain.value == pytest.approx(0.3)
    assert found.control.gain.value == pytest.approx(0.1)
    assert found.over_control.gain.value == pytest.approx(0.2)


def test_the_base_against_itself_has_not_moved_and_costs_are_unknown_with_a_reason() -> None:
    found = summary.summarise(BASE, BASE, AXIS)
    assert found.gain.value == 0 and not found.gain.moved
    assert math.isnan(found.cost.value) and found.cost.reason
    assert found.surgical is None
    assert math.isnan(summary.retain(HEALED, BASE, BASE, AXIS).value)
    assert "lost no canary mass" in summary.recovered(HEALED, BASE, BASE, AXIS).reason


def test_a_target_that_moves_the_wrong_way_is_not_surgical() -> None:
    assert summary.summarise(HEALED, BASE, Axis(foundation="care", sign=-1)).surgical is False


@pytest.mark.long
def test_the_same_state_reads_the_same_twice_and_shuffled_vignettes_change_no_aggregate() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    settings = MeasureSettings(
        instrument="likelihood",
        per_foundation=1,
        prompts=3,
        tokens=6,
        long_prompts=1,
        json_prompts=1,
    )
    kwargs = {"sampling": SamplingSettings(tokens=6), "seed": 0}
    one = evaluate(chat, "base", base(), persona, settings, **kwargs)
    two = evaluate(chat, "base", base(), persona, settings, **kwargs)
    assert one == two
    shuffled = one.model_copy(update={"vignettes": one.vignettes[::-1]})
    a, b = (summary.summarise(item, item, persona.axis) for item in (one, shuffled))
    assert a.nats == pytest.approx(b.nats)
    assert a.values["top1"] == b.values["top1"]


# ── damage guard ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "Tom", "age": 3}', True),
        ('Here you are:\n```json\n["red", "green"]\n```', True),
        ('{"name": "Tom", "age": }', False),
        ("Tom is three.", False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_is_found_where_it_is(text: str, valid: bool) -> None:
    assert damage.holds_json(text) is valid


def test_plain_perplexity_is_the_plain_computation() -> None:
    chat = tiny.chat()
    text = prompts.data().joinpath("plain.txt").read_text()
    total, count = 0.0, 0
    for part in text.split("\n\n"):
        ids = [chat.end_of_turn(), *text_ids(chat, part)]
        with torch.no_grad():
            logs = chat.net(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        total -= logs[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        count += len(ids) - 1
    assert damage.plain_perplexity(chat) == pytest.approx(math.exp(total / count), rel=1e-3)


@pytest.mark.long
def test_the_guard_stands_beside_the_answer_mass_in_every_summary() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    settings = MeasureSettings(
        instrument="likelihood",
        per_foundation=1,
        prompts=2,
        tokens=4,
        long_prompts=2,
        long_tokens=8,
        json_prompts=2,
    )
    read = evaluate(chat, "base", base(), persona, settings, sampling=SamplingSettings(), seed=0)
    found = summary.summarise(read, read, persona.axis)
    assert (len(read.long), len(read.json_replies)) == (2, 2)
    values = {name: item.value for name, item in found.values.items()}
    assert values["prose_perplexity"] == read.plain_perplexity > 1
    assert found.values["json_is_valid"].n == 2
    assert 0 <= values["not_wrong"] <= 1
    assert values["long_words"] > 0 and 0 <= values["loop_share"] <= 1
