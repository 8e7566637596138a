"""The last lines of a run: what it showed or saw, what to try, and the command that goes on."""

import shlex
from pathlib import Path

from steerheal import ranks
from steerheal.console import MARKS, Console
from steerheal.line import with_option
from steerheal.records import RoundRecord, RunRecord
from steerheal.records.tracking import TRACK
from steerheal.report.page import conditions, headline, shown_differs
from steerheal.report.words import chosen
from steerheal.store import read_shown


def onward(folder: Path, *more: str) -> str:
    """The command that goes on with a run, at the tracker and with the processes that it has."""
    followed = [("--track", file.stem) for file in sorted((folder / TRACK).glob("*.json"))]
    line = [*ranks.command(), "run", "--resume", str(folder), *more]
    return shlex.join([*line, *(followed[0] if followed else ())])


def next_lines(record: RunRecord, folder: Path) -> list[tuple[str, str]]:
    """What to do with a healed run: in two words, and as a command that works when it is pasted."""

    def line(word: str, *more: str) -> str:
        return shlex.join(["steerheal", word, str(folder), *more])

    found = [
        ("talk to it", line("chat")),
        ("ask it", line("sample", "--gate", "0.5", "--prompt", "What matters most to you?")),
        ("read it", line("evaluate", "--gate", "0.5")),
        ("export it", line("export")),
    ]
    if not record.command.startswith("steerheal run "):
        return found

    def again(called: str, flag: str, value: str) -> str:
        """The run's own line with one option changed, beside it."""
        own = with_option(with_option(record.command, "--until", None), flag, value)
        own = with_option(own, "--runs", str(folder.parent))
        return with_option(own, "--name", f"{folder.name}-{called}")

    done = len(record.rounds)
    if record.rounds[-1].outcome == "folded" and done >= record.settings(folder).rounds:
        more = str(done + 1)
        found.append(("one more round", again(f"rounds-{more}", "--rounds", more)))
    if record.settings(folder).teacher != "prompt":
        found.append(("against a prompt", again("prompt", "--teacher", "prompt")))
        other = folder.with_name(f"{folder.name}-prompt")
        found.append(("  and then", line("evaluate", "--against", str(other))))
    return found


def closing(record: RunRecord, folder: Path, page: Path, console: Console) -> None:
    """Says how a run ended; of a healed round only where there is one."""
    console.say("")
    console.say(headline(record))
    if any(row.healed is not None for row in record.rounds):
        _healed(record, folder, console)
    elif record.rounds:
        _unhealed(record.rounds[-1], folder, console)
    console.say(f"\nreport  {page}")
    if any(row.healed is not None for row in record.rounds):
        console.say("next")
        for what, line in next_lines(record, folder):
            console.say(f"  {what:<18}{line}")


def _healed(record: RunRecord, folder: Path, console: Console) -> None:
    """The demo's conditions, the best round, and one prompt's answers before and after."""
    for condition in conditions(record, shown_differs(folder, record)):
        mark = {True: "✓", False: "✗", None: "?"}[condition.holds]
        console.say(f"{mark} {condition.text}   {condition.numbers}")
    if record.best_reason:
        console.say(f"best    {record.best_reason}")
    row = chosen(record)
    if row is not None:
        states = ((-1, "base"), (row.round, "steered"), (row.round, "healed"))
        answers = [read_shown(folder, *where).completions[0] for where in states]
        console.say(f"\nprompt  {answers[0].prompt}")
        for (_, state), answer in zip(states, answers, strict=True):
            console.say(f"{state:<8}{answer.text}")


def _unhealed(row: RoundRecord, folder: Path, console: Console) -> None:
    """What the checks of the round saw, what to try, and how to go on."""
    for finding in row.findings:
        console.say(
            f"{MARKS[finding.tone]} {finding.check} saw: {finding.outcome}. {finding.words}"
        )
        console.say(f"  try   {finding.advice}")
    if row.outcome == "stopped":
        console.say(f"go on   {onward(folder)}")
        if all(finding.check != "check 2" for finding in row.findings):
            console.say(f"or      {onward(folder, '--until', 'check2')}")
    else:
        console.say(
            "The run has ended: other settings are another run. Give the command again with what "
            "is to be tried and another --name; stages that do not change are not made again."
        )
