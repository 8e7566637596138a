"""The forced-choice instrument and its protocol."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steerheal.errors import UserError
from steerheal.measure import forced_choice, protocol, vignettes
from steerheal.measure.forced_choice import ForcedChoice
from steerheal.measure.protocol import Protocol
from steerheal.measure.slot import interruption
from steerheal.measure.vignettes import Vignette
from steerheal.models.chat import prompt_ids, text_ids
from steerheal.models.hooks import adding
from steerheal.models.load import wrap
from steerheal.models.model import ChatModel
from steerheal.records import FOUNDATIONS
from steerheal.state.values import entered

import tiny

PUBLISHED = "protocol_tinymfv_words.json"
WORDS = ("care", "fairness", "loyalty", "authority", "purity", "bondage", "oddity")
NAMES = ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms")


def short(labels: tuple[str, ...] = WORDS, **changes: Any) -> Protocol:
    """A protocol of few bytes whose labels differ in their first one."""
    coarse = dict(zip(WORDS, NAMES, strict=True))
    lines = {label: f' "{label}", # {label[::-1]}' for label in labels}
    fields: dict[str, Any] = {
        "name": "short",
        "source": "this test",
        "labels": labels,
        "coarse": {label: coarse[label] for label in labels},
        "glosses": {label: label[::-1] for label in labels},
        "user_turn": "{vignette}\n{schema}",
        "schema_forward": "\n".join(["One of [", *lines.values(), "]"]),
        "schema_reversed": "\n".join(["One of [", *list(lines.values())[::-1], "]"]),
        "think_open": "<t>",
        "think_close": "</t>",
        "nudge": "Go",
        "prefill": '{"a": "',
        "keep_last_think_token": True,
    }
    return Protocol(**fields | changes)


ASKED = [
    Vignette(id=str(i), condition="other", foundation=FOUNDATIONS[i], text=text)
    for i, text in enumerate(("You see a cat.", "You see a far longer act.", "Someone sits down."))
]


# ── protocol ────────────────────────────────────────────────────────────────────────────────────


def test_reversed_options_are_the_forward_ones_in_another_order(shared: Path) -> None:
    for wording in (protocol.load(), protocol.load(shared / "tinymfv" / PUBLISHED)):
        assert wording.schema_for(wording.labels) == wording.schema_forward
        assert wording.schema_for(wording.labels[::-1]) == wording.schema_reversed
        assert wording.words() == FOUNDATIONS
        assert wording.turn("{x}", wording.labels).startswith("{x}\n")


def test_the_bundled_wording_is_our_own(shared: Path) -> None:
    ours, theirs = protocol.load(), protocol.load(shared / "tinymfv" / PUBLISHED)
    assert not set(ours.glosses.values()) & set(theirs.glosses.values())
    assert ours.schema_forward.split("\n")[0] != theirs.schema_forward.split("\n")[0]
    assert (ours.nudge, ours.prefill) != (theirs.nudge, theirs.prefill)
    assert ours.keep_last_think_token and not theirs.keep_last_think_token


def test_labels_may_be_listed_in_any_order_and_be_any_words() -> None:
    wording = short(WORDS[3:] + WORDS[:3])
    assert wording.words() == WORDS
    assert short(**json.loads(short().model_dump_json())) == short()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nudge": None}, "nudge: given None; allowed: text"),
        ({"nudges": "x"}, "Perhaps you meant 'nudge'"),
        ({"labels": ["care"] * 7}, "7 distinct labels"),
        ({"labels": list(WORDS[:6])}, "7 distinct labels"),
        ({"coarse": dict.fromkeys(WORDS, "Care")}, "every foundation once"),
        ({"coarse": {"care": "Care"}}, "keys must be the labels"),
        ({"glosses": dict.fromkeys(WORDS, "absent")}, "holds its gloss"),
        ({"schema_forward": "care, fairness"}, 'one line that begins with "care"'),
        ({"schema_reversed": short().schema_forward}, "in reverse order"),
        ({"user_turn": "{vignette} {other}"}, "must be doubled"),
        ({"user_turn": "{vignette}"}, "once each"),
        ({"prefill": ""}, "prefill"),
    ],
)
def test_a_wrong_protocol_file_is_one_clear_message(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(short().model_dump() | change))
    with pytest.raises(UserError, match=message):
        protocol.load(file)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "Cannot read"), ("{", "not JSON"), ("[]", "dictionary")]
)
def test_a_file_that_is_no_protocol_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "p.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        protocol.load(file)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    fields = short().model_dump()
    del fields["nudge"]
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"nudge is missing"):
        protocol.load(file)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def plain(
    chat: ChatModel, vignette: Vignette, wording: Protocol, labels: tuple[str, ...], think: int
) -> tuple[Tensor, float]:
    """Label log-probabilities and prefill NLL: every step a whole forward, no cache, no batch."""

    def logits(ids: list[int]) -> Tensor:
        with torch.no_grad():
            return chat.net(input_ids=torch.tensor([ids])).logits[0].float()

    ids = prompt_ids(chat, wording.turn(vignette.text, labels), prefill=wording.think_open)
    for _ in range(think if wording.keep_last_think_token else think - 1):
        step = logits(ids)[-1]
        step[list(chat.stop_ids())] = -math.inf
        ids = [*ids, int(step.argmax())]
    prefill = text_ids(chat, wording.prefill)
    ids += [*text_ids(chat, interruption(chat, wording)), *prefill]
    logs = logits(ids).log_softmax(-1)
    places = range(len(ids) - len(prefill), len(ids))
    nll = -sum(logs[i - 1, ids[i]].item() for i in places) / len(prefill)
    return logs[-1, [text_ids(chat, word)[0] for word in wording.words()]], nll


def agrees(chat: ChatModel, found: ForcedChoice, wording: Protocol, think: int) -> None:
    for row, vignette in zip(found.rows, ASKED, strict=True):
        orders = (wording.labels, wording.labels[::-1])
        parts = [plain(chat, vignette, wording, labels, think) for labels in orders]
        logs = torch.stack([part[0] for part in parts])
        assert row.score == pytest.approx(logs.mean(0).tolist(), abs=2e-3)
        assert row.p == pytest.approx(logs.mean(0).softmax(0).tolist(), abs=1e-3)
        assert row.p_ans_any == pytest.approx(logs.exp().sum(1).mean().item(), abs=1e-3)
        assert row.nll_prefill == pytest.approx((parts[0][1] + parts[1][1]) / 2, abs=2e-3)
        assert (row.id, row.foundation) == (vignette.id, vignette.foundation)


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gemma3-multimodal", "mistral"])
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_a_reading_equals_the_plain_computation(family: str, rows: int) -> None:
    chat = tiny.chat(family)
    found = forced_choice.read(chat, ASKED, short(), think=5, rows=rows)
    agrees(chat, found, short(), 5)
    assert found.rollouts == 6 and found.scored_naturally == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_vignette_may_stand_after_what_its_orders_share(family: str) -> None:
    chat, wording = tiny.chat(family), short(user_turn="{schema}\n{vignette}")
    agrees(chat, forced_choice.read(chat, ASKED, wording, think=3), wording, 3)


@pytest.mark.parametrize("think", [0, 1, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_the_last_think_token_counts_only_where_the_protocol_says_so(
    think: int, keep: bool
) -> None:
    chat, wording = tiny.chat(), short(keep_last_think_token=keep)
    agrees(chat, forced_choice.read(chat, ASKED, wording, think=think), wording, think)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("orders", ["two", "cyclic"])
def test_a_reading_does_not_depend_on_its_neighbours(family: str, orders: Any) -> None:
    chat = tiny.chat(family)
    together = forced_choice.read(chat, ASKED, short(), think=4, orders=orders).rows
    done: list[int] = []
    backwards = forced_choice.read(
        chat, ASKED[::-1], short(), think=4, orders=orders, rows=5, progress=done.append
    )
    assert sum(done) == len(ASKED)
    for row, other in zip(together, backwards.rows[::-1], strict=True):
        assert row.id == other.id
        assert row.score == pytest.approx(other.score, abs=1e-3)


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    whole = forced_choice.read(chat, ASKED, short(), think=2)
    hidden, done = ChatModel.hidden, list[int]()

    def cramped(self: ChatModel, ids: Tensor, **inputs: Any) -> Tensor:
        if len(ids) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return hidden(self, ids, **inputs)

    monkeypatch.setattr(ChatModel, "hidden", cramped)
    halved = forced_choice.read(chat, ASKED, short(), think=2, progress=done.append)
    assert sum(done) == len(ASKED)
    for row, other in zip(whole.rows, halved.rows, strict=True):
        assert row.score == pytest.approx(other.score, abs=1e-3)


def test_a_dose_reaches_every_token_of_every_row() -> None:
    chat = tiny.chat()
    vectors = {1: torch.randn(32, generator=torch.Generator().manual_seed(0))}
    base = forced_choice.read(chat, ASKED, short(), think=3)
    with entered(chat, tiny.steered(vectors, (0.0, 0.7))) as reader:
        still, found = forced_choice.sweep(reader, ASKED, short(), think=3)
    for row, other in zip(base.rows, still.rows, strict=True):
        assert row.score == pytest.approx(other.score, abs=1e-4)
    with adding(chat, vectors, 0.7):
        agrees(chat, found, short(), 3)


@pytest.mark.parametrize("rows", [4, 128])
def test_a_sweep_reads_every_dose_as_if_it_were_alone(rows: int) -> None:
    chat = tiny.chat()
    vectors = {1: torch.randn(32, generator=torch.Generator().manual_seed(0))}
    states = tiny.steered(vectors, (0.0, 0.7, -1.5))
    with entered(chat, states) as reader:
        swept = forced_choice.sweep(reader, ASKED, short(), think=3, rows=rows)
    alone = []
    for state in states:
        with state.entered(chat) as reader:
            alone.append(forced_choice.read(reader, ASKED, short(), think=3))
    for found, other in zip(swept, alone, strict=True):
        for row, twin in zip(found.rows, other.rows, strict=True):
            assert row.score == pytest.approx(twin.score, abs=1e-4)
    assert swept[0].rows[0].score != pytest.approx(swept[1].rows[0].score, abs=1e-2)


def test_a_dose_that_breaks_the_model_reads_nan_never_a_number() -> None:
    chat = tiny.chat()
    (state,) = tiny.steered({2: 1e38 * torch.ones(32)}, (100.0,))
    with state.entered(chat) as reader:
        (found,) = forced_choice.sweep(reader, ASKED, short(), think=2, orders="cyclic")
    for row in found.rows:
        assert all(map(math.isnan, (*row.score, *row.p, row.p_ans_any, row.nll_prefill)))
    assert all(map(math.isnan, found.position_bias)) and "not finite" in found.position_reason


def test_nothing_asked_is_nothing_read() -> None:
    found = forced_choice.read(tiny.chat(), [], short())
    assert found.rows == [] and found.rollouts == 0
    cyclic = forced_choice.read(tiny.chat(), [], short(), orders="cyclic")
    assert "missing" in cyclic.position_reason


# ── orders ──────────────────────────────────────────────────────────────────────────────────────


def biased(bias: list[float], liking: list[float], orders: Any) -> ForcedChoice:
    """A reading of a model that likes some labels and some list positions, and nothing else."""
    wording = short()
    lists = forced_choice._lists(wording, orders)
    logs = torch.tensor(
        [
            [liking[k] + bias[labels.index(word)] for k, word in enumerate(wording.words())]
            for labels in lists
        ]
    )
    found = forced_choice._empty(len(lists))._replace(logs=logs)
    return forced_choice._collected(found, ASKED[:1], wording, lists)


def test_cyclic_orders_cancel_any_position_bias_and_name_it() -> None:
    bias, liking = [2.0, 0.0, -1.0, 0.5, 0.0, -3.0, 1.5], [-4.0, -3.0, -5.0, -2.0, -9.0, -6.0, -1.0]
    found = biased(bias, liking, "cyclic")
    likes = torch.tensor(liking).softmax(0).tolist()
    assert found.rows[0].p == pytest.approx(likes, abs=1e-6)
    assert found.position_bias == pytest.approx(bias, abs=1e-5)  # this bias sums to 0
    assert not found.position_reason
    both = biased(bias, liking, "two")
    assert both.rows[0].p != pytest.approx(likes, abs=1e-2)
    assert all(map(math.isnan, both.position_bias)) and "cyclic" in both.position_reason


def test_cyclic_orders_put_every_label_at_every_position_once() -> None:
    lists = forced_choice._lists(short(), "cyclic")
    assert all({labels[k] for labels in lists} == set(WORDS) for k in range(7))
    found = forced_choice.read(tiny.chat(), ASKED, short(), think=1, orders="cyclic")
    assert found.rollouts == 21
    assert sum(found.position_bias) == pytest.approx(0, abs=1e-4)


# ── the slot ────────────────────────────────────────────────────────────────────────────────────


def test_labels_that_begin_with_the_same_token_are_named_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"loyalty, sanctity, liberty, social\. .*likelihood"):
        forced_choice.read(tiny.chat(), ASKED, protocol.load())


STARTED = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '[' + m['role'] + ']' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TALKATIVE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHi<|im_end|>\n' }}{% endif %}"
    + tiny.CHATML
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (tiny.CHATML, "</t><|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n"),
        # A start token of the whole conversation stays out of the middle of it.
        (STARTED, "</t><|im_end|>[user]Go<|im_end|>[assistant]"),
        # A system prompt that the template brings along stays in, as published readings have it.
        (
            TALKATIVE,
            "</t><|im_end|>\n<|im_start|>system\nHi<|im_end|>\n"
            "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_interruption_is_what_the_template_prints(template: str, expected: str) -> None:
    assert interruption(tiny.chat(template=template), short()) == expected


def test_a_template_without_assistant_turns_is_refused() -> None:
    mute = (
        "<|im_start|>{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    )
    chat = wrap(tiny.net(), tiny.tokenizer(mute), name="mute")
    with pytest.raises(UserError, match="does not print an assistant message"):
        interruption(chat, short())


def insisting(chat: ChatModel, text: str) -> Callable[[ChatModel, Tensor], Tensor]:
    """Logits by which one token wins every step."""
    (wanted,), logits = text_ids(chat, text), ChatModel.logits

    def pushed(self: ChatModel, hidden: Tensor) -> Tensor:
        found = logits(self, hidden)
        found[..., wanted] += 1000
        return found

    return pushed


@pytest.mark.parametrize(
    ("insists", "think_close", "closed"),
    [
        (tiny.END, "</t>", 6),  # the turn's end, which is suppressed
        ("~", "~", 6),  # a marker of one token, which is suppressed
        ("~", "~~", 6),  # a marker of two tokens, which nothing suppresses
        ("x", "</t>", 0),
        ("x", "", 0),
    ],
)
def test_rollouts_that_would_end_early_are_counted(
    insists: str, think_close: str, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    monkeypatch.setattr(ChatModel, "logits", insisting(chat, insists))
    found = forced_choice.read(chat, ASKED, short(think_close=think_close), think=3)
    assert (found.closed_early, found.answered_early) == (closed, 0)


def test_a_token_that_ends_the_turn_is_never_thought() -> None:
    chat, wording = tiny.chat(), short()
    prompt = prompt_ids(chat, wording.turn(ASKED[0].text, wording.labels), prefill="<t>")
    with torch.no_grad():
        first = int(chat.net(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    config = chat.net.generation_config
    assert config is not None
    config.eos_token_id = [first]
    chat = wrap(chat.net, chat.tokenizer, name="ends where it would begin")
    found = forced_choice.read(chat, ASKED, wording, think=3)
    assert found.closed_early >= 1
    agrees(chat, found, wording, 3)


def test_rollouts_that_write_the_answers_opening_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    monkeypatch.setattr(ChatModel, "logits", insisting(chat, "x"))
    assert forced_choice.read(chat, ASKED, short(prefill="xx"), think=3).answered_early == 6


# ── the published readings ──────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(("think", "batches"), [(1, ((1, 1), (3, 4))), (16, ((2, 2),))])
def test_the_published_readings_are_reproduced_at_every_batch_size(
    think: int, batches: tuple[tuple[int, int], ...], shared: Path
) -> None:
    chat = tiny.embedded()
    wording = protocol.load(shared / "tinymfv" / PUBLISHED)
    file = shared / "reference" / "tinymfv_smollm2.json"
    published = {
        row["id"]: row for row in json.loads(file.read_text())["rows"] if row["T"] == think
    }
    asked = [
        vignette
        for vignette in vignettes.load(
            str(shared / "tinymfv" / "vignettes_classic_other_violate.jsonl")
        )
        if vignette.id in published
    ]
    assert len(asked) == 4
    for rows, count in batches:
        found = forced_choice.read(chat, asked[:count], wording, think=think, rows=rows)
        assert found.closed_early == found.answered_early == 0
        for row in found.rows:
            expected = published[row.id]
            assert row.score == pytest.approx(expected["score"], abs=1e-3)
            assert row.p == pytest.approx(expected["p"], abs=1e-3)
            assert row.p_ans_any == pytest.approx(expected["pmass"], abs=1e-3)
            assert row.nll_prefill == pytest.approx(expected["nll_json"], abs=1e-3)
