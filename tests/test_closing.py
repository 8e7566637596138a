"""The last lines of a run: what to do next, as commands that work when they are pasted."""

import shlex
from pathlib import Path

import pytest

import reports
from steerheal.cli import KINDS
from steerheal.commands.run import RunCommand
from steerheal.console import Console
from steerheal.personas import find
from steerheal.pipeline.closing import closing, next_lines
from steerheal.store import write_record

LINE = "steerheal run love --preset quick --rounds 3 --until check1 --name one"


def test_every_line_is_read_by_its_command_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "it's one"
    record = reports.run_record(command=LINE, persona=find("love"))
    write_record(folder / "run.json", record)
    lines = dict(next_lines(record, folder))
    assert len(lines) >= 5
    for what, line in lines.items():
        program, word, *words = shlex.split(line)
        assert program == "steerheal"
        options = KINDS[word].of(words)
        if what != "  and then":
            options.check()
    again = RunCommand.of(shlex.split(lines["against a prompt"])[2:])
    assert again.settings.teacher == "prompt" and again.until is None
    assert again.runs == folder.parent and again.name == "it's one-prompt"


def test_the_last_folded_round_s_answers_stand_where_no_round_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = (reports.folded(0), reports.folded(1), reports.starved(2))
    record = reports.run_record(rounds=rounds, best=None, best_reason="no round gained trait")
    folder = reports.fill(tmp_path / "one", record)
    for state in ("steered", "healed"):
        shown = reports.answers(state, f"{state} in round 2")
        write_record(folder / "round-02" / f"shown-{state}.json", shown)
    closing(record, folder, folder / "report.html", Console())
    said = capsys.readouterr().out
    assert "steered steered in round 2" in said and "healed  healed in round 2" in said
    assert "best    no round gained trait" in said


def test_another_round_is_offered_where_the_last_one_asked_for_was_folded(tmp_path: Path) -> None:
    rounds = (reports.folded(0), reports.folded(1), reports.folded(2))
    record = reports.run_record(command=LINE, rounds=rounds)
    lines = dict(next_lines(record, tmp_path / "one"))
    more = RunCommand.of(shlex.split(lines["one more round"])[2:])
    assert more.settings.rounds == 4 and more.name == "one-rounds-4"
    ended = record.model_copy(update={"rounds": (*rounds[:2], reports.starved(2))})
    assert "one more round" not in dict(next_lines(ended, tmp_path / "one"))
