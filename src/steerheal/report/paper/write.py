"""A paper's folder, written whole: text, tables, figures, bibliography, and where it is from.

paper.qmd       the skeleton, for Quarto; every number in it is inserted
numbers.yml     what is inserted
introduction.md method.md method.tex references.bib preamble.tex
tables/         every table as .md and as .tex
figures/        every figure as .pdf and as .svg
record.json     which record it was made from, and the digest of every file
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from steerheal import disk, store
from steerheal.errors import UserError
from steerheal.records import RunRecord
from steerheal.records.comparing import CompareRecord
from steerheal.records.paper import PaperRecord
from steerheal.report import draw
from steerheal.report.paper import compare, run, sheets
from steerheal.report.paper.content import Content
from steerheal.report.paper.escape import markdown, preamble
from steerheal.report.paper.prose import as_latex, as_markdown, bibliography

RECORD = "record.json"


def finished(folder: Path) -> RunRecord | CompareRecord:
    """The record of a finished run or comparison.

    Raises:
        UserError: neither, unreadable, or unfinished.
    """
    if (folder / store.COMPARE).is_file():
        record = store.read_record(folder / store.COMPARE, CompareRecord)
    else:
        record = store.read_run(folder)
    if record.status != "finished":
        raise UserError(
            f"{folder} is not finished (it is {record.status}), and a paper is made of what is. "
            f"Go on with it first: {record.command}"
        )
    return record


def refuse_taken(out: Path, source: PaperRecord) -> None:
    """Refuses a place that holds anything but an earlier paper of the same record, as it was made.

    Raises:
        UserError: it does, or cannot be looked at.
    """
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise UserError(f"--out: cannot look at {out}: {error.strerror}.") from error
    elsewhere = "Choose another folder with --out."
    if not (out / RECORD).is_file():
        raise UserError(f"--out: {out} holds something that is no paper. {elsewhere}")
    earlier = store.read_record(out / RECORD, PaperRecord)
    if earlier.of != source.of:
        raise UserError(f"--out: {out} holds the paper of {earlier.of}, not of {source.of}. "
                        f"{elsewhere}")  # fmt: skip
    edited = [
        name
        for name, digest in earlier.files.items()
        if (out / name).is_file() and _digest((out / name).read_bytes()) != digest
    ]
    if edited:
        raise UserError(
            f"--out: in {out}, {', '.join(edited)} has changed since it was written, and would be "
            f"lost. {elsewhere}"
        )


def source_of(record: RunRecord | CompareRecord) -> PaperRecord:
    """Which record a paper is of."""
    kind = "comparison" if isinstance(record, CompareRecord) else "run"
    digest = _digest(record.model_dump_json().encode())
    model = record.environment.get("fingerprint", "")
    return PaperRecord(
        of=f"{kind} {record.name}{f' on model {model}' if model else ''}",
        command=record.command,
        record=digest,
    )


def write_paper(record: RunRecord | CompareRecord, out: Path) -> Path:
    """Writes the folder, in place of an earlier paper of the same record; returns the skeleton.

    Other files that lie beside an earlier paper, such as what Quarto made of it, are kept.

    Raises:
        UserError: as in `refuse_taken`, or the disk refuses.
    """
    source = source_of(record)
    refuse_taken(out, source)
    content = compare.content(record) if isinstance(record, CompareRecord) else run.content(record)
    made = {name: text.encode() for name, text in _texts(content).items()}
    for picture in content.pictures:
        drawing, name = picture.draw(), picture.name
        made[f"figures/{name}.pdf"] = draw.pdf(drawing)
        made[f"figures/{name}.svg"] = draw.svg(drawing, name).encode()
    digests = {name: _digest(data) for name, data in made.items()}
    with disk.whole_folder(out, over=True) as work:
        _keep_others(out, work)
        for name, data in made.items():
            disk.write_bytes(work / name, data)
        store.write_record(work / RECORD, source.model_copy(update={"files": digests}))
    return out / "paper.qmd"


def _keep_others(out: Path, work: Path) -> None:
    """Copies what the earlier paper did not write."""
    if not (out / RECORD).is_file():
        return
    own = {RECORD, *store.read_record(out / RECORD, PaperRecord).files}
    for path in out.rglob("*"):
        name = path.relative_to(out)
        if path.is_file() and str(name) not in own:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, work / name)


def _texts(content: Content) -> dict[str, str]:
    """Every file of text by its name."""
    inserted = {
        "findings": _numbered(content.findings),
        "told": _numbered(content.told),
        "captions": {item.name: markdown(item.caption) for item in content.pictures},
        "limitations": _numbered(content.limitations),
    }
    names = {group: list(texts) for group, texts in inserted.items()}
    head = {"title": markdown(content.title), "abstract": markdown(content.abstract)}
    found = {
        "paper.qmd": _skeleton(equation=content.equation, tables=list(content.tables), **names),
        "numbers.yml": _yaml({**head, "paper": inserted}),
        "introduction.md": "\n\n".join(map(as_markdown, content.introduction)) + "\n",
        "method.md": "\n\n".join(map(as_markdown, content.method)) + "\n",
        "method.tex": "\n\n".join(map(as_latex, content.method)) + "\n",
        "references.bib": bibliography([*content.introduction, *content.method]),
        "preamble.tex": preamble(),
    }  # fmt: skip
    for name, table in content.tables.items():
        found[f"tables/{name}.md"] = sheets.as_markdown(table)
        found[f"tables/{name}.tex"] = sheets.as_latex(table, name)
    return found


def _numbered(sentences: list[str]) -> dict[str, str]:
    """Sentences by name, as Markdown."""
    return {f"says{place}": markdown(text) for place, text in enumerate(sentences, start=1)}


def _skeleton(**values: object) -> str:
    """The document; its marks leave Quarto's and LaTeX's alone."""
    environment = Environment(
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        comment_start_string="[#",
        comment_end_string="#]",
    )
    text = files("steerheal.report").joinpath("paper.qmd.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(**values) + "\n"


Texts = Mapping[str, "str | Texts"]


def _yaml(values: Texts, indent: str = "") -> str:
    """Nested texts as YAML, whose quoted scalars are JSON's."""
    lines = [
        f"{indent}{name}:\n{_yaml(value, indent + '  ')}"
        if isinstance(value, Mapping)
        else f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in values.items()
    ]
    return "".join(lines)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
