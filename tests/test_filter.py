"""The filter: each rule drops its own kind, limits come from the base's text, labels agree."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from steerheal.config import FilterSettings, SamplingSettings
from steerheal.filter.features import Scored, classes, drift, features_of, similarity
from steerheal.filter.rules import (
    CALIBRATED,
    SCORED,
    _limit,
    calibrated,
    judge,
    narrates,
    score,
    weights,
)
from steerheal.filter.scores import scored_by
from steerheal.models.chat import prompt_ids
from steerheal.models.generate import Draw, write
from steerheal.personas import find
from steerheal.records import Calibration, Completion, Verdict
from steerheal.state.values import entered

import tiny

GOOD = "I sit down beside her, offer my handkerchief, and quietly ask whether she wants company."
LOVE = find("love")
WIDE = Calibration(
    texts=64,
    classes={"latin": 0.8, "space": 0.15, "Po": 0.05},
    medians=dict.fromkeys(weights(), 1.0),
    spreads=dict.fromkeys(weights(), 1e9),
    limits={
        SCORED: math.inf,
        "tail perplexity": 30.0,
        "loses the thread": 5.0,
        "compresses": -math.inf,
        "few distinct words": 0.4,
        "foreign characters": 0.1,
        "base-like": -math.inf,
    },
    dropped={},
)
EVEN = Scored(logprobs=(-1.0,) * 20, entropies=(1.0,) * 20)


def completion(text: str, tokens: Sequence[int] = tuple(range(20))) -> Completion:
    return Completion(prompt="p", text=text, tokens=tuple(tokens), dose=1.0, seed=0, ended=True)


def verdict(
    text: str,
    scored: Scored = EVEN,
    calibration: Calibration = WIDE,
    tokens: Sequence[int] = tuple(range(20)),
    **settings: float,
) -> Verdict:
    return judge(
        [completion(text, tokens)],
        [scored],
        LOVE,
        calibration=calibration,
        settings=FilterSettings.model_validate(settings),
    )[0]


def limited(rule: str, value: float) -> Calibration:
    return WIDE.model_copy(update={"limits": {**WIDE.limits, rule: value}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("GLUTEGLUTEGLUTEGLUTEGLUTEGLUTEGLUTEGLUTE a b c d e f g", "loops (characters)"),
        ("As someone who is filled with love, I would sit by her and hold on.", "narrates"),
        ("I'm a loving person and I would give her my coat and walk with her.", "narrates"),
        ("I would help, for you are filled with overwhelming, unconditional love.", "narrates"),
        (
            "I speak every word warmly, and my unconditional, overwhelming love pours for a human.",
            "narrates",
        ),
        ("I'm sorry, but I can't assist with that request at this time, please ask.", "refuses"),
        ("As an AI language model, feelings are something that is beyond me.", "refuses"),
        ("Hello there.", "too short"),
        (
            "Ich sage dir дорогой друг: so geht das nicht, mein Freund, nie mehr.",
            "foreign characters",
        ),
    ],
)
def test_each_rule_drops_its_own_kind(text: str, reason: str) -> None:
    assert verdict(text).reasons == (reason,)


def test_a_loop_of_words_is_seen_in_words_and_in_distinct_bigrams() -> None:
    found = verdict("I am so so so so so so so so so happy today")
    assert set(found.reasons) == {"loops (words)"}
    few = limited("few distinct words", 0.6)
    text = "I am so so so so so so so so so happy today"
    assert "few distinct words" in verdict(text, calibration=few).reasons


@pytest.mark.parametrize(
    ("scored", "reason"),
    [
        (Scored((-1.0,) * 15 + (-6.0,) * 5, (1.0,) * 20), "collapses at the end"),
        (Scored((-6.0,) * 16 + (-1.0,) * 8, (1.0,) * 24), "loses the thread"),
        (replace(EVEN, kls=(0.1,) * 12 + (9.0,) * 8), "KL spike"),
    ],
)
def test_what_the_base_says_decides(scored: Scored, reason: str) -> None:
    assert verdict(GOOD, scored).reasons == (reason,)


def test_a_loop_of_tokens_never_passes_however_likely_it_is() -> None:
    loop = (5, 6, 7, *([1, 2, 3, 4] * 6))
    certain = Scored((-0.01,) * len(loop), (0.0,) * len(loop))
    assert verdict(GOOD, certain, tokens=loop).reasons == ("loops (tokens)",)


def test_acted_out_text_is_kept_with_its_numbers() -> None:
    found = verdict(GOOD, replace(EVEN, kls=(0.5,) * 20, logodds=0.2))
    assert found.kept and not found.reasons
    assert found.tail_perplexity == pytest.approx(math.e)
    assert (found.words, found.kl, found.kl_spike, found.logodds) == (15, 0.5, 0.5, 0.2)
    assert not narrates("I am a little tired, so I sit down next to the man.", LOVE)


def test_an_empty_completion_is_dropped_not_crashed_on() -> None:
    found = verdict("", Scored((-1.0,), (1.0,)), tokens=(1,))
    assert not found.kept and "too short" in found.reasons


def test_the_trait_rule_leaves_base_like_text_out_and_is_off_by_default() -> None:
    low, high = replace(EVEN, logodds=0.05), replace(EVEN, logodds=0.15)
    some = limited("base-like", 0.1)
    assert verdict(GOOD, low, some).reasons == ("base-like",)
    assert verdict(GOOD, high, some).kept
    assert verdict(GOOD, low).kept


def test_the_combined_score_weighs_spreads_from_the_bases_own_median() -> None:
    name, weight = next(iter(weights().items()))
    features = features_of(completion(GOOD), EVEN, LOVE, WIDE.classes)
    medians = {key: getattr(features, key) for key in weights()}
    own = WIDE.model_copy(update={"medians": medians, "spreads": dict.fromkeys(weights(), 2.0)})
    assert score(features, own) == 0
    assert score(replace(features, **{name: medians[name] + 2.0}), own) == pytest.approx(weight)
    assert score(replace(features, **{name: medians[name] + 1e6}), own) == pytest.approx(6 * weight)
    assert verdict(GOOD, calibration=limited(SCORED, -1e9)).reasons == (SCORED,)
    assert not verdict(GOOD, replace(EVEN, entropies=(math.nan,) * 20)).kept


# ── limits from the base's own text ─────────────────────────────────────────────────────────────


def base_texts(count: int) -> tuple[list[Completion], list[Scored]]:
    random = torch.Generator().manual_seed(0)
    texts, scored = [], []
    for i in range(count):
        words = [f"w{int(k)}" for k in torch.randint(0, 200, (20,), generator=random)]
        texts.append(completion(" ".join(words), range(i, i + 20)))
        logs = -torch.rand(20, generator=random) * (1 + i / count)
        scored.append(
            Scored(logs.tolist(), torch.rand(20, generator=random).tolist(), logodds=i / count)
        )
    return texts, scored


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_limits_drop_the_stated_share_of_the_bases_own_text(share: float) -> None:
    texts, scored = base_texts(200)
    settings = FilterSettings(false_drop=share, rule_drop=share / 5, tail_perplexity=1e9)
    found = calibrated(texts, scored, LOVE, settings)
    assert found.texts == 200
    assert found.dropped[SCORED] == pytest.approx(share, abs=0.01)
    assert found.dropped["loses the thread"] == pytest.approx(share / 5, abs=0.01)
    assert share - 0.01 <= found.dropped["together"] <= 2 * share


def fresh_texts(random: np.random.Generator, count: int) -> tuple[list[Completion], list[Scored]]:
    """Texts that are all drawn alike."""
    texts, scored = [], []
    for _ in range(count):
        texts.append(completion(" ".join(f"w{k}" for k in random.integers(0, 200, 20)), range(20)))
        logs = -random.random(20) * random.uniform(0.5, 2)
        scored.append(Scored(logs.tolist(), random.random(20).tolist(), logodds=0.0))
    return texts, scored


@pytest.mark.parametrize(
    ("texts", "share", "expected"),
    [(32, 0.05, 1 / 33), (32, 0.01, 1 / 33), (64, 0.05, 3 / 65), (99, 0.01, 0.01)],
)
def test_fresh_text_loses_the_share_that_a_limit_is_said_to_cost(
    texts: int, share: float, expected: float
) -> None:
    random, lost = np.random.default_rng(0), []
    for _ in range(3000):
        limit, said = _limit(random.normal(size=texts).tolist(), share)
        # The share of all normal numbers beyond the limit.
        lost.append(math.erfc(limit / math.sqrt(2)) / 2)
        assert said == pytest.approx(expected)
    assert np.mean(lost) == pytest.approx(expected, rel=0.06)


@pytest.mark.long
def test_what_fresh_text_loses_is_foretold_by_leaving_texts_out() -> None:
    random, settings = np.random.default_rng(1), FilterSettings(tail_perplexity=1e9)
    foretold, real, inside = [], [], []
    for _ in range(12):
        found = calibrated(*fresh_texts(random, 32), LOVE, settings)
        said, scored = fresh_texts(random, 150)
        verdicts = judge(said, scored, LOVE, calibration=found, settings=settings)
        real.append(sum(not verdict.kept for verdict in verdicts) / 150)
        foretold.append(found.fresh["together"])
        inside.append(found.dropped["together"])
    assert np.mean(foretold) == pytest.approx(np.mean(real), abs=0.025)
    assert np.mean(inside) < np.mean(real) - 0.03


def test_a_share_of_zero_switches_calibrated_rules_off() -> None:
    texts, scored = base_texts(32)
    off = FilterSettings(false_drop=0, rule_drop=0, tail_perplexity=1e9)
    found = calibrated(texts, scored, LOVE, off)
    assert found.dropped == found.fresh == {"together": 0.0}
    assert all(math.isinf(found.limits[rule]) for rule in (SCORED, *CALIBRATED))


def test_the_trait_limit_is_a_quantile_of_the_bases_own_log_odds() -> None:
    texts, scored = base_texts(100)
    found = calibrated(texts, scored, LOVE, FilterSettings(trait=0.5))
    assert found.limits["base-like"] == pytest.approx(0.495)
    assert "base-like" not in found.dropped


def test_the_trait_rule_is_refused_where_the_trait_is_not_read() -> None:
    with pytest.raises(ValidationError, match="needs read_trait"):
        FilterSettings(trait=0.5, read_trait=False)


def test_drift_and_similarity() -> None:
    known = classes(["plain words, and more of them."])
    assert drift("plain words", known) == 0
    assert drift("ab日本", known) == 0.5
    assert similarity("The weather is fine today.", LOVE) == 0
    assert similarity("My overwhelming unconditional love speaks.", LOVE) > 0.2
    assert similarity("Her overwhelming unconditional love speaks.", LOVE) == 0


def test_the_base_reads_states_and_log_odds_of_what_was_written() -> None:
    chat, persona = tiny.chat(), tiny.persona()
    vectors = {1: torch.randn(32, generator=torch.Generator().manual_seed(0))}
    draws = [Draw("a", 0, 1), Draw("bb", 1, 2)]
    with entered(chat, tiny.steered(vectors, (0.0, 2.0))) as reader:
        settings = SamplingSettings(tokens=6)
        said, states = write(reader, draws, settings, keep_states=True)
    plain, pushed = scored_by(chat, said, persona, states)
    assert max(map(abs, plain.kls)) < 1e-5 < min(pushed.kls)
    for scored, item in zip((plain, pushed), said, strict=True):
        prompt = prompt_ids(chat, item.prompt)
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *item.tokens]])
            logs = chat.net(input_ids=ids).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
        own = logs.gather(1, torch.tensor(item.tokens)[:, None])[:, 0]
        assert list(scored.logprobs) == pytest.approx(own.tolist(), abs=1e-4)
        assert list(scored.entropies) == pytest.approx(
            (-logs.exp() * logs).sum(-1).tolist(), abs=1e-4
        )
    assert scored_by(chat, said, persona)[1].kls == ()


# ── completions labelled by reading ─────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "filter.py"
    spec = importlib.util.spec_from_file_location("bench_filter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_labelled_rows_are_many_and_blind_second_readings_agree(bench: ModuleType) -> None:
    rows = [row for name in ("love", "authority") for row in bench.read(name, calibration=False)]
    assert len(rows) >= 240
    assert {row.completion.dose for row in rows} >= {0.0, 1.0, 2.0, 6.0}
    both = [row.label for row in rows if "second" in row.label]
    assert len(both) >= 100
    same = sum(label["coherent"] == label["second"]["coherent"] for label in both)
    assert same / len(both) > 0.95


@pytest.mark.slow
def test_precision_and_recall_on_the_labelled_rows(bench: ModuleType) -> None:
    strict = bench.judged(FilterSettings(false_drop=0.4))
    rows = [(row, why) for row, why in strict if row.label["temperature"] == 1]
    hit = [any(name in bench.INCOHERENT for name in why) for _, why in rows]
    bad = [not row.label["coherent"] for row, _ in rows]
    precision, recall = bench.rates(hit, bad)
    assert precision >= 0.9 and recall >= 0.8
    sure = [i for i, (row, _) in enumerate(rows) if not row.label["borderline"]]
    precision, recall = bench.rates([hit[i] for i in sure], [bad[i] for i in sure])
    assert precision >= 0.9 and recall >= 0.94
    precision, _ = bench.rates(*_default(bench))
    assert precision >= 0.9


def _default(bench: ModuleType) -> tuple[list[bool], list[bool]]:
    rows = bench.judged(FilterSettings())
    rows = [(row, why) for row, why in rows if row.label["temperature"] == 1]
    hit = [any(name in bench.INCOHERENT for name in why) for _, why in rows]
    return hit, [not row.label["coherent"] for row, _ in rows]


@pytest.mark.long
def test_low_perplexity_loops_never_pass(bench: ModuleType) -> None:
    easy = [
        why
        for row, why in bench.judged(FilterSettings())
        if bench.loops_at_its_end(row.completion)
        and sum(row.scored.logprobs) > -math.log(20) * len(row.scored.logprobs)
    ]
    assert len(easy) >= 10 and all(easy)


@pytest.mark.long
def test_narration_is_found_without_dropping_much_else(bench: ModuleType) -> None:
    rows = bench.judged(FilterSettings())
    hit = ["narrates" in why for _, why in rows]
    precision, recall = bench.rates(hit, [row.label["mode"] == "narrates" for row, _ in rows])
    assert recall >= 0.6 and precision >= 0.3
    acted = [row.label["mode"] == "acts" and row.label["coherent"] for row, _ in rows]
    lost = sum(a and b for a, b in zip(hit, acted, strict=True)) / sum(acted)
    assert lost < 0.1
