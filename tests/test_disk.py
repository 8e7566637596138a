"""What is written is there whole, with ordinary modes and advice that fits; text comes back."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import reports
from steerheal import disk
from steerheal.disk import whole_folder, write_bytes, write_text
from steerheal.errors import UserError
from steerheal.measure import vignettes
from steerheal.records import Harvest, Judged, Shown
from steerheal.store import (
    read_harvest_folder,
    read_lines,
    read_record,
    write_harvest,
    write_lines,
    write_record,
)

BREAKS = [*"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\r\n", "\t", "\0", "\ufeff", "\U0001f600"]


def said(text: str) -> Harvest:
    """A harvest whose completions hold a text everywhere."""
    found = reports.harvest(3)
    rows = []
    for item in found.judged:
        completion = item.completion.model_copy(update={"prompt": text, "text": text})
        rows.append(item.model_copy(update={"completion": completion}))
    return found.model_copy(update={"judged": tuple(rows)})


@pytest.mark.parametrize("mark", BREAKS, ids=ascii)
@pytest.mark.parametrize("form", ["a{}b", "{}", "{}a{}", "a{}{}b"])
def test_text_with_any_break_in_it_comes_back_from_disk(
    tmp_path: Path, mark: str, form: str
) -> None:
    text = form.format(*[mark] * form.count("{}"))
    harvest = said(text)
    write_harvest(tmp_path, harvest)
    back = read_harvest_folder(tmp_path)
    assert [row.completion.text for row in back.judged] == [text] * 3
    assert back.model_dump_json() == harvest.model_dump_json()
    lines = (tmp_path / "completions.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 4 and lines[-1] == b""
    shown = Shown(state=text, completions=(harvest.judged[0].completion,))
    write_record(tmp_path / "shown.json", shown)
    assert read_record(tmp_path / "shown.json", Shown) == shown


def test_half_a_surrogate_pair_is_written_as_the_replacement_character(tmp_path: Path) -> None:
    write_harvest(tmp_path, said("a\ud83db\udc00"))
    back = read_harvest_folder(tmp_path)
    assert {row.completion.text for row in back.judged} == {"a\ufffdb\ufffd"}
    write_text(tmp_path / "page.html", "\udfff")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "\ufffd"


@pytest.mark.parametrize("mark", [c for c in BREAKS if c not in ("\n", "\r", "\r\n")], ids=ascii)
def test_a_vignette_with_a_break_in_its_text_is_one_vignette(tmp_path: Path, mark: str) -> None:
    file = tmp_path / "mine.jsonl"
    row = {"id": "a", "foundation_coarse": "Care", "text": f"You see{mark}a cruel act."}
    text = json.dumps(row, ensure_ascii=mark < " ") + "\r\n"
    file.write_text(text + text.replace('"a"', '"b"'), encoding="utf-8", newline="")
    assert [item.text for item in vignettes.load(str(file))] == [row["text"]] * 2


def test_a_vignette_with_half_a_pair_in_its_text_can_be_asked_and_saved(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a\\ud800", "foundation_coarse": "Care", "text": "See \\udc00."}')
    (found,) = vignettes.load(str(file))
    assert (found.id, found.text) == ("a\ufffd", "See \ufffd.")


def test_an_empty_line_between_records_is_none(tmp_path: Path) -> None:
    rows = said("text").judged
    write_lines(tmp_path / "rows.jsonl", rows)
    content = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(content.replace("\n", "\r\n\n"), encoding="utf-8")
    assert len(read_lines(tmp_path / "rows.jsonl", Judged)) == 3


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)],
)
def test_files_and_folders_have_the_modes_that_the_umask_gives(
    tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "stage") as work:
            save_file({"a": torch.ones(1)}, work / "weights.safetensors")
            (work / "inner").mkdir(mode=0o700)
            (work / "inner" / "private").touch(mode=0o600)
        write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert found == {
        "stage": folder, "stage/weights.safetensors": file, "stage/inner": folder,
        "stage/inner/private": file, "file": file,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EACCES, "change the permissions"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "a file where a folder is needed"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.EIO, "fault of its own"),
        (errno.EINTR, ""),
    ],
)
def test_the_advice_is_for_what_the_disk_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuses)
    with pytest.raises(UserError) as told:
        write_bytes(tmp_path / "file", b"x")
    text = str(told.value)
    assert os.strerror(number) in text and advice in text
    assert ("room" in text) == (advice == "Make room")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_only_words_the_systems_error_gets_the_same_advice(tmp_path: Path) -> None:
    error = disk.disk_error(tmp_path, ValueError("I/O error: disk quota exceeded (os error 122)"))
    if errno.EDQUOT == 122:
        assert "Make room" in str(error)


def test_real_refusals_are_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file where a folder is needed"):
        write_bytes(tmp_path / "file" / "inner", b"x")
    with pytest.raises(UserError, match="shorter name"):
        write_bytes(tmp_path / ("n" * 300), b"x")
    with (
        pytest.raises(UserError, match="a file where a folder is needed"),
        whole_folder(tmp_path / "file" / "inner"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_in_the_way_is_no_success_unless_it_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(UserError, match="Cannot write"), whole_folder(tmp_path / "out") as work:
        (work / "ours").touch()
    with whole_folder(tmp_path / "out", shared=True) as work:
        (work / "ours").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_link_never_shows_half_a_file_and_needs_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, place = tmp_path / "a", tmp_path / "there" / "b"
    source.write_text("new")
    disk.link(source, place)
    disk.link(source, place)
    assert place.samefile(source)
    place.unlink()
    place.write_text("old")

    def none(*_: object) -> None:
        raise OSError(errno.EXDEV, "no links here")

    monkeypatch.setattr("os.link", none)
    disk.link(source, place)
    assert place.read_text() == "new" and not place.samefile(source)
    assert [path.name for path in place.parent.iterdir()] == ["b"]
