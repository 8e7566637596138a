"""Dates, variables and thought markers in chat templates."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from torch import Tensor

import spaced
from steerheal.cli import main
from steerheal.commands.evaluate import EvaluateCommand
from steerheal.commands.run import RunCommand
from steerheal.config import (
    FilterSettings,
    HealSettings,
    ModelSettings,
    RunConfig,
    SamplingSettings,
    resolve,
)
from steerheal.errors import UserError
from steerheal.filter.features import Scored
from steerheal.filter.rules import calibrated, judge
from steerheal.measure import forced_choice, protocol, vignettes
from steerheal.models import template as templates
from steerheal.models.chat import decode, prompt_ids, text_ids
from steerheal.models.generate import Draw, generate
from steerheal.models.load import load, wrap
from steerheal.models.model import ChatModel
from steerheal.models.template import frozen
from steerheal.models.thinking import joined, thought_in
from steerheal.pipeline.surroundings import environment, notes
from steerheal.records import Completion, Thought
from steerheal.store import read_run
from test_cli import OPTIONS

import tiny

ASSISTANT = "{{ '<|im_start|>assistant\n' }}"
OPENS = tiny.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
SWITCH = tiny.CHATML.replace(
    ASSISTANT,
    ASSISTANT + "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
)
GRANITE = "{% if thinking %}{{ 'Think first.' }}{% endif %}" + tiny.CHATML


def text(chat: ChatModel, prefill: str = "", system: str = "") -> str:
    return str(chat.tokenizer.decode(prompt_ids(chat, "x", prefill=prefill, system=system)))


class Midnight(datetime):
    """A clock that a test sets."""

    at = datetime(2026, 3, 14, 23, 59)

    @classmethod
    def now(cls, tz: Any = None) -> "datetime":  # noqa: ARG003
        return cls.at


# ── the date ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shows", "printed"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "05 Feb 2026"),
        ("{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}", "2026-02-05T07:08:09"),
        ("{{ strftime_now('%-d.%-m.%y, %A %j %p %I') }}", "5.2.26, Thursday 036 AM 07"),
        ("{{ strftime_now('100%% %d') }}", "100% 05"),
        ("{% set f = '%B' %}{{ strftime_now(f + ' ' + '%e') | upper }}", "FEBRUARY  5"),
        ("{% macro head() %}{{ strftime_now('%d/%m') }}{% endmacro %}{{ head() }}", "05/02"),
        ("{% if strftime_now is defined %}{{ date_string }}{% endif %}", "05 Feb 2026"),
        (
            "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
            "{% for m in messages %}{{ date_string }}{% endfor %}",
            "05 Feb 2026",
        ),
        ("\n  {% if true %}a{% endif %}\n b", "\na b"),
    ],
)
def test_every_way_of_printing_a_date_prints_the_one_that_was_set(shows: str, printed: str) -> None:
    chat = tiny.chat(template=shows + tiny.CHATML, date="2026-02-05T07:08:09")
    assert text(chat).startswith(printed + tiny.START)


def test_a_source_renders_as_it_did_before_anything_was_set() -> None:
    for source in (tiny.CHATML, "\n\n{{ 'a' }}\n" + tiny.CHATML, "   {% if 1 %}b{% endif %}\n\n"):
        tok = tiny.tokenizer(source)
        asked = [("user", "x")]
        plain = tok.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        assert frozen(tok, name="m").render(asked, reply=False) == plain


def test_a_date_stands_still_over_midnight_and_the_record_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "datetime", Midnight)
    chat = tiny.chat(template="{{ strftime_now('%d %B') }}" + tiny.CHATML)
    before = text(chat)
    monkeypatch.setattr(Midnight, "at", datetime(2026, 3, 15, 0, 1))
    assert text(chat) == before
    assert before.startswith("14 March")
    assert chat.template.date == "2026-03-14"
    assert any("prints the date: 2026-03-14" in note for note in notes(chat, HealSettings()))
    assert text(tiny.chat(template="{{ strftime_now('%d %B') }}" + tiny.CHATML)) != before


def test_a_time_of_day_is_recorded_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "datetime", Midnight)
    assert tiny.chat(template="{{ strftime_now('%M') }}" + tiny.CHATML).template.date == (
        "2026-03-14T23:59:00"
    )


@pytest.mark.parametrize(("source", "same"), [(tiny.CHATML, True), ("{{ date_string }}", False)])
def test_a_day_changes_the_fingerprint_only_of_a_template_that_prints_it(
    source: str, same: bool
) -> None:
    one, other = (
        tiny.chat(template=source + tiny.CHATML, date=date) for date in ("2026-01-01", "2026-01-02")
    )
    assert (one.fingerprint == other.fingerprint) is same
    assert (one.template.date == "") is same


@pytest.mark.slow
def test_a_run_goes_on_with_the_date_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "datetime", Midnight)
    folder, runs = tmp_path / "dated", tmp_path / "runs"
    tiny.net().save_pretrained(folder)
    tiny.tokenizer("{{ strftime_now('%d %b') }}" + tiny.CHATML).save_pretrained(folder)
    options = [part.format(model=folder) for part in OPTIONS]
    options = [part.replace("--device", "--model.device") for part in options]
    line = ["run", "love", "--runs", str(runs), "--name", "r", "--until", "check1", *options]
    main(line)
    monkeypatch.setattr(Midnight, "at", datetime(2026, 3, 15, 0, 1))
    main(line)
    main(["run", "--resume", str(runs / "r"), "--until", "check1"])
    record = read_run(runs / "r")
    assert record.settings("r").model.date == "2026-03-14"
    assert record.stages and all(mark.reused for mark in record.stages)


def test_a_date_that_nothing_prints_is_said_to_be_without_effect() -> None:
    chat = tiny.chat(date="2026-01-01")
    assert any("2026-01-01 is without effect" in note for note in notes(chat, HealSettings()))


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a date such as"):
        ModelSettings(date="tomorrow")


# ── variables ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (['{"enable_thinking": true}'], {"enable_thinking": True}),
        (["enable_thinking=true", "effort=low"], {"enable_thinking": True, "effort": "low"}),
        (["n=3", 'tone={"a": [1, null]}'], {"n": 3, "tone": {"a": [1, None]}}),
    ],
)
def test_template_variables_are_read_off_the_line(words: list[str], expected: object) -> None:
    options = RunCommand.of(["love", "--model.template-vars", *words])
    assert options.settings.model.template_vars == expected


def test_every_command_that_reads_a_model_takes_the_templates_settings() -> None:
    line = ["--model", "m", "--template-vars", "thinking=true", "--date", "2026-01-02"]
    asked = EvaluateCommand.of(line).asked_model()
    assert asked == ModelSettings(name="m", template_vars={"thinking": True}, date="2026-01-02")


def test_template_variables_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[model.template_vars]\nenable_thinking = true\n")
    assert resolve("quick", file).model.template_vars == {"enable_thinking": True}


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "_x", "a b"])
def test_what_a_template_is_given_anyway_cannot_be_set(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be set in a chat template"):
        ModelSettings(template_vars={name: 1})


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path)
    with pytest.raises(UserError, match=r"does not read enable_thinkng: --model.template-vars"):
        load(ModelSettings(name=str(folder), template_vars={"enable_thinkng": True}))


@pytest.mark.parametrize("value", ["a 'b' \"c\"\n", "%}{{ 1 }}", "é☃", 3.5, [1, None, {"k": True}]])
def test_a_variable_arrives_as_it_was_given(value: object) -> None:
    chat = tiny.chat(template="{{ v | tojson }}" + tiny.CHATML, template_vars={"v": value})
    assert json.loads(text(chat).partition(tiny.START)[0]) == value


# ── thinking ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "given", "thinks", "mode"),
    [
        (SWITCH, {}, False, "off (the template's enable_thinking)"),
        (SWITCH, {"enable_thinking": True}, True, "on (the template's enable_thinking, as asked)"),
        (GRANITE, {}, False, "off (the template's thinking)"),
        (GRANITE, {"thinking": True}, True, "on (the template's thinking, as asked)"),
        (OPENS, {}, True, "always (the template opens <think> and has no switch)"),
        (tiny.CHATML, {}, True, ""),
    ],
)
def test_thinking_is_off_where_the_template_has_a_switch_and_the_record_says_so(
    source: str, given: dict[str, Any], thinks: bool, mode: str
) -> None:
    chat = tiny.chat(template=source, template_vars=given)
    shown = text(chat)
    closed, told = "</think>" in shown, "Think first" in shown
    assert thinks is (not closed if source is SWITCH else told if source is GRANITE else True)
    assert chat.template.thinking() == mode
    assert environment(chat, RunConfig()).get("thinking", "") == mode
    assert any(note == f"Thinking: {mode}." for note in notes(chat, HealSettings())) is bool(mode)


def test_the_mode_is_part_of_what_identifies_a_model() -> None:
    on = tiny.chat(template=SWITCH, template_vars={"enable_thinking": True})
    assert on.fingerprint != tiny.chat(template=SWITCH).fingerprint


@pytest.mark.parametrize(
    ("prompt", "said", "whole"),
    [
        ("a:", "<think>\n", "a:<think>\n"),
        ("a:<think>\n", "<think>\n", "a:<think>\n"),
        ("a:<think>", "<think>\n", "a:<think>\n"),
        ("a:<think>\n\n</think>\n\n", "<think>\n", "a:<think>\n"),
        ("a:[THINK]", "<think>\n", "a:[THINK]\n"),
        ("a:[THINK][/THINK]", "<think>\n", "a:[THINK]\n"),
        ("a:<think>\n", "It is", "a:<think>\n\n</think>\n\nIt is"),
        ("a:<think>", "It is", "a:<think></think>It is"),
        ("a:<think>\n\n</think>\n\n", "It is", "a:<think>\n\n</think>\n\nIt is"),
        ("a:<think>\n", "", "a:<think>\n"),
        ("<think> in a question\na:", "It is", "<think> in a question\na:It is"),
    ],
)
def test_a_thought_is_opened_once_and_closed_before_an_answer(
    prompt: str, said: str, whole: str
) -> None:
    assert "".join(joined(prompt, said)) == whole


@pytest.mark.parametrize(
    ("written", "opened", "expected"),
    [
        ("Hello there.", False, ""),
        ("Hello there.", True, "open"),
        ("<think>\nhm", False, "open"),
        ("<think>\nhm</think>", False, "open"),
        ("<think>\nhm</think>\n\nYes.", False, "closed"),
        ("hm</think>Yes.", True, "closed"),
        ("</think>Yes.", False, "closed"),
        ("[THINK]hm[/THINK]Yes.", False, "closed"),
        ("<think>a</think>b<think>c", False, "open"),
    ],
)
def test_a_thought_is_seen_whoever_opened_it(written: str, opened: bool, expected: str) -> None:
    assert thought_in(written, opened=opened) == expected


# ── thoughts in what a model writes ─────────────────────────────────────────────────────────────


def writing(chat: ChatModel, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a model write this text and end its turn, whatever it is asked."""
    ids, logits = iter([*text_ids(chat, text), chat.end_of_turn()]), ChatModel.logits

    def forced(self: ChatModel, hidden: Tensor) -> Tensor:
        found = logits(self, hidden)
        found[..., next(ids)] += 1000
        return found

    monkeypatch.setattr(ChatModel, "logits", forced)


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        (tiny.CHATML, "<think>\nhm", "open"),
        (tiny.CHATML, "<think>\nhm</think>\n\nYes.", "closed"),
        (tiny.CHATML, "Yes, of course.", ""),
        (OPENS, "I wonder", "open"),
        (OPENS, "I wonder</think>Yes.", "closed"),
    ],
)
def test_a_completion_says_whether_it_holds_a_thought(
    source: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat(template=source)
    writing(chat, text, monkeypatch)
    (said,) = generate(chat, [Draw("x")], SamplingSettings(tokens=60, temperature=0))
    assert said.text == text
    assert said.thought == expected


def test_a_thought_marker_that_is_a_special_token_is_seen() -> None:
    tok = tiny.tokenizer()
    tok.add_tokens([AddedToken("<think>", special=True)])
    chat = wrap(tiny.net(), tok, name="special")
    assert thought_in(decode(chat, [259, *text_ids(chat, "hm"), 258])) == "open"


@pytest.mark.parametrize(
    ("text", "thought", "dropped"),
    [
        ("<think>\nOkay, the user asks about rivers.", "open", True),
        ("Okay, the user asks about rivers, so I", "open", True),
        ("<think>hm</think>\nRivers run to the sea.", "closed", True),
        ("[THINK]hm[/THINK]Rivers run to the sea.", "", True),
        ("<|channel|>final<|message|>Rivers run to the sea.", "", False),
        ("Rivers run to the sea.", "", False),
    ],
)
def test_a_thought_is_dropped_with_a_reason_of_its_own_unless_it_is_asked_for(
    text: str, thought: Thought, dropped: bool
) -> None:
    said = Completion(
        prompt="x", text=text, tokens=(1, 2), dose=1, seed=0, ended=True, thought=thought
    )
    scored = [Scored(logprobs=(-1.0, -1.0), entropies=(1.0, 1.0), logodds=0.0)]
    persona = tiny.persona()
    limits = calibrated([said] * 8, scored * 8, persona, FilterSettings())
    for settings, expected in ((FilterSettings(), dropped), (FilterSettings(thoughts=True), False)):
        (verdict,) = judge([said], scored, persona, calibration=limits, settings=settings)
        assert ("thought" in verdict.reasons) is expected
        assert not (expected and verdict.kept)
    assert limits.dropped.get("thought", 0) == dropped


@pytest.mark.parametrize("think", [0, 3])
@pytest.mark.parametrize(
    ("opens", "marks"),
    [
        ("", ("<think>", "</think>")),
        ("<think>\n", ("<think>", "</think>")),
        ("<think>\n\n</think>\n\n", ("<think>", "</think>")),
        ("[THINK]", ("[THINK]", "[/THINK]")),
        ("[THINK][/THINK]", ("[THINK]", "[/THINK]")),
    ],
)
def test_a_forced_choice_thinks_once_in_the_templates_own_markers(
    opens: str, marks: tuple[str, str], think: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.CHATML.replace(
        "assistant\n' }}{% endif %}", f"assistant\n{opens}' }}}}{{% endif %}}"
    )
    chat, rows = spaced.chat("first", source), []
    plain = ChatModel.hidden

    def reading(self: ChatModel, ids: Tensor, *rest: Any, **inputs: Any) -> Tensor:
        rows.append(ids[0].tolist())
        return plain(self, ids, *rest, **inputs)

    monkeypatch.setattr(ChatModel, "hidden", reading)
    forced_choice.read(chat, vignettes.load("everyday")[:1], protocol.load(), think=think)
    whole = str(chat.tokenizer.decode([i for row in rows for i in row]))
    assert [whole.count(mark) for mark in marks] == [1, 1]
    assert whole.index(marks[0]) < whole.index(marks[1]) < whole.rindex('{"reason": "')
    other = {"<think>", "[THINK]"} - {marks[0]}
    assert not any(mark in whole for mark in other)
