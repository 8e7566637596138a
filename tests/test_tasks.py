"""Verifiable tasks: what each check takes and refuses; fixed texts are fresh."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from steerheal import prompts
from steerheal.measure.tasks import CHECKS, Task, load, passed
from steerheal.personas import HALVES, POLES, alike, built_in

ANSWERS: dict[str, str] = json.loads(
    (Path(__file__).parent / "data" / "task_answers.json").read_text(encoding="utf-8")
)
"""An answer to every task, written by hand."""
TASKS = load()


def task(check: Any, prompt: str = "?", **arguments: Any) -> Task:
    return Task(id="a", kind="a", prompt=prompt, check=check, arguments=arguments)


NUMBER = task("number", "How many minutes are in 2 hours?", value=120)
SAYS = task("says", any=["Rome", "H2O"])
ONLY = task("only", text="blue")
EXACTLY = task("exactly", text="Box A-17 goes to Room 3B.")
LITERAL = task("literal", text="LANTERN")
ORDER = task("order", items=["2", "7", "19"])
PICK = task("pick", item="lamp", others=["stone", "river"])
LETTER = task("letter", value="e")
YES, NO = task("yes_no", value=True), task("yes_no", value=False)
OBJECT = task("json", fields={"name": "Mia", "floor": 2, "open": True})
WORDS = task("words", count=3)
MEMBERS = task("members", of=["Saturday", "Sunday"], count=2, besides=["Friday"])

TAKEN = [
    (NUMBER, "120"),
    (NUMBER, "**120 minutes.**"),
    (NUMBER, "There are 120 minutes in 2 hours."),
    (NUMBER, "One hour has 60 minutes, so 2 hours have 60+60=120"),
    (task("number", value=5000), "That is 5,000 g"),
    (task("number", value=-4), "The result is −4."),
    (task("number", value=25), "42-17 leaves twenty-five: 42-17=25"),
    (task("number", value=26), "Twenty-six letters"),
    (task("number", value=2), "The word occurs twice."),
    (SAYS, "It is called rome, of course."),
    (SAYS, "H₂O"),
    (ONLY, "Blue!"),
    (ONLY, " **'blue'.**\n"),
    (ONLY, '"Blue".'),
    (EXACTLY, "Box A-17 goes to Room 3B.\n"),
    (EXACTLY, '"Box A-17 goes to Room 3B."'),
    (LITERAL, "In capitals it is LANTERN."),
    (ORDER, "Sorted from smallest: 2, 7, 19."),
    (ORDER, "1. 2\n2. 7\n3. 19"),
    (ORDER, "19, 7, 2 becomes 2, 7, 19"),
    (PICK, "The last word is *Lamp*."),
    (LETTER, "E"),
    (LETTER, "It is the letter 'e', as in e-n-d."),
    (LETTER, "I see an E after a consonant."),
    (YES, "Yes."),
    (YES, "Yes, and no whale lays eggs."),
    (YES, "The answer is yes"),
    (NO, "**No**, it is odd."),
    (NO, "Yes or no? No."),
    (OBJECT, '{"name": "Mia", "floor": 2, "open": true}'),
    (OBJECT, 'Here:\n```json\n{"open": true, "floor": 2,\n "name": "mia"}\n```'),
    (WORDS, "Tall, green trees!"),
    (WORDS, "well-kept dog's home"),
    (MEMBERS, "- Sunday\n- Saturday"),
    (MEMBERS, "They are Saturday and Sunday; Sunday is the last."),
]
REFUSED = [
    (NUMBER, "121"),
    (NUMBER, "There are 1200 minutes."),
    (NUMBER, "2 hours"),
    (NUMBER, "60, 120, 180"),
    (task("number", value=26), "Twenty letters"),
    (task("number", value=3), "13"),
    (SAYS, "Romeo"),
    (SAYS, "Milan"),
    (ONLY, "The color is blue."),
    (ONLY, "blue blue"),
    (ONLY, "blue?"),
    (EXACTLY, "Box A-17 goes to room 3B."),
    (EXACTLY, "Here it is: Box A-17 goes to Room 3B."),
    (EXACTLY, "Box A-17 goes to Room 3B"),
    (LITERAL, "lantern"),
    (LITERAL, "LANTERNS"),
    (ORDER, "7, 2, 19"),
    (ORDER, "2, 19"),
    (ORDER, "19 is not 2, 7 is not 19"),
    (ORDER, "2, 7, 19? No: 19, 2, 7"),
    (PICK, "stone"),
    (PICK, "stone, river, lamp"),
    (PICK, "lamps"),
    (LETTER, "t"),
    (LETTER, "e or t"),
    (LETTER, "The word begins with ea."),
    (YES, "No."),
    (YES, "I cannot say yes or no."),
    (NO, "It depends: yes and no."),
    (NO, "Yes or no"),
    (NO, "Nothing is known."),
    (OBJECT, '{"name": "Mia", "floor": "2", "open": true}'),
    (OBJECT, '{"name": "Mia", "floor": 2, "open": 1}'),
    (OBJECT, '{"name": "Mia", "floor": 2}'),
    (OBJECT, '{"name": "Mia", "floor": 2, "open": true, "more": 0}'),
    (OBJECT, '{"name": "Mia", "floor": 2, "open": true'),
    (WORDS, "Green trees"),
    (WORDS, "Very tall green trees"),
    (WORDS, "green green trees"),
    (MEMBERS, "Saturday, Saturday"),
    (MEMBERS, "Friday, Saturday, Sunday"),
]


@pytest.mark.parametrize(("asked", "answer"), TAKEN)
def test_a_right_answer_passes_however_it_is_put(asked: Task, answer: str) -> None:
    assert passed(asked, answer)


@pytest.mark.parametrize(("asked", "answer"), REFUSED)
def test_a_wrong_answer_fails_however_near_it_comes(asked: Task, answer: str) -> None:
    assert not passed(asked, answer)


def test_every_check_is_tried_both_ways_and_used() -> None:
    checks = set(CHECKS)
    assert {asked.check for asked, _ in TAKEN} == {asked.check for asked, _ in REFUSED} == checks
    assert {item.check for item in TASKS} == checks


def test_there_are_enough_tasks_of_every_kind_and_any_beginning_is_mixed() -> None:
    kinds = Counter(item.kind for item in TASKS)
    assert len(TASKS) >= 96 and len(kinds) >= 8 and min(kinds.values()) >= 8
    for start in range(0, len(TASKS), len(kinds)):
        assert {item.kind for item in TASKS[start : start + len(kinds)]} == set(kinds)
    assert len({item.id for item in TASKS}) == len(TASKS) == len(ANSWERS)
    assert all(len(item.prompt) <= 120 for item in TASKS)


@pytest.mark.parametrize("item", TASKS, ids=lambda item: item.id)
def test_a_task_is_passed_by_its_answer_and_by_nothing_that_is_at_hand(item: Task) -> None:
    assert passed(item, ANSWERS[item.id])
    row = [other for other in TASKS if other.kind == item.kind]
    place = row.index(item)
    for other in (row[place - 1], row[(place + 1) % len(row)]):
        assert not passed(item, ANSWERS[other.id]), other.id
    broken = ["", " \n", "...", item.prompt, f"{item.prompt} {item.prompt}", "the the the the the"]
    assert not any(passed(item, answer) for answer in broken)


def test_no_fixed_text_is_another_one_or_a_prompt_of_a_persona() -> None:
    fixed = [item.prompt for item in TASKS]
    fixed += [*prompts.control_train(), *prompts.control_held_out(), *prompts.contexts()]
    fixed += [
        line for name in ("open", "json", "plain", "statements") for line in prompts.lines(name)
    ]
    for persona in built_in().values():
        pools = persona.prompts
        fixed += [*pools.train, *pools.evaluate, *pools.show, *pools.test]
        fixed += [persona.positive, persona.negative]
        for half in HALVES:
            fixed += [getattr(pair, pole) for pair in persona.pairs(half) for pole in POLES]
    seen = Counter(alike(text) for text in fixed)
    assert [text for text, times in seen.items() if times > 1] == []


def test_what_is_trained_on_is_not_nearly_what_is_read() -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", alike(text)))

    read = [*prompts.control_held_out(), *(item.prompt for item in TASKS)]
    for one in prompts.control_train():
        for other in read:
            shared, either = words(one) & words(other), words(one) | words(other)
            assert len(shared) <= len(either) / 2, (one, other)
