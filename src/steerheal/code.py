"""What makes a stage: digests of its inputs, and of the modules that compute it, without a run.

A module belongs to a stage when the stage's own modules import it, directly or through others of
this package. What a module says to a reader does not count: comments, blank lines and docstrings.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import CodeType

from pydantic import BaseModel

from steerheal.records import VERSION

PACKAGE = "steerheal"
STATES = ("state.formulas", "state.values")
"""What every state is made by, whichever it is."""
MADE_BY: dict[str, tuple[str, ...]] = {
    "qualify": ("measure.auto", "measure.instruments"),
    "evaluate": ("measure.evaluate", "measure.instruments", *STATES),
    "test": ("measure.evaluate", *STATES),
    "show": ("models.generate", *STATES),
    "vector": ("steer.vector", *STATES),
    "sweep": ("measure.sweep", "measure.instruments", *STATES, "steer.equal"),
    "calibrate": ("models.generate", "filter.rules", "filter.scores"),
    "harvest": (
        "models.generate", "pipeline.walk", "filter.rules", "filter.scores", *STATES,
    ),
    "heal": ("heal.train", "heal.teacher", "models.score", *STATES),
    "internalise": ("steer.internalise", *STATES),
}  # fmt: skip
"""The modules that each stage calls; `pipeline.stages` puts them together and counts for all."""
JOINS = "pipeline.stages"
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scipy")
"""Whose arithmetic a result is; another version may round otherwise."""
OWN_TEXTS = "personas"
"""Bundled texts that enter a stage's key by what they say."""


def made_by(stage: str) -> str:
    """Digest of the code, bundled data and libraries that make a stage of this name."""
    return _made_by(stage)


@cache
def _made_by(stage: str) -> str:
    root = files(PACKAGE)
    found = [version(name) for name in LIBRARIES]
    try:
        found += [digest_of(stage, root), _data(root.joinpath("data"))]
    except (OSError, SyntaxError, UnicodeDecodeError):  # installed without readable sources
        found.append(version(PACKAGE))
    return _short(found)


def all_of_it() -> str:
    """Digest of what makes any stage, for the record of a run."""
    return _short([made_by(stage) for stage in MADE_BY])


def digest_of(stage: str, root: Traversable) -> str:
    """Digest of the modules that make a stage, in the package at `root`.

    Raises:
        OSError: a source cannot be read.
    """
    names = modules_of(MADE_BY[stage], root)
    return _short([f"{name} {_module(root, name)[0]}" for name in (*names, JOINS)])


def modules_of(entries: Sequence[str], root: Traversable) -> tuple[str, ...]:
    """These modules of the package at `root` and all that they import, sorted by name."""
    found: set[str] = set()
    left = list(entries)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _module(root, name)[1]
    return tuple(sorted(found))


@cache
def _module(root: Traversable, name: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's code, and the modules of this package that it imports."""
    source = _source(root, name)
    if source is None:
        raise FileNotFoundError(name)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imports = {found for found in _imported(tree.body) if _source(root, found) is not None}
    # A package runs before what is in it; the outermost only gives names.
    around = {found.rpartition(".")[0] for found in imports} - {""}
    done = hashlib.sha256()
    _enter(compile(tree, name, "exec", dont_inherit=True, optimize=2), done)
    return done.hexdigest(), tuple(sorted(imports | around))


def _enter(code: CodeType, digest: "hashlib._Hash") -> None:
    """What the code does, without its lines, names of files and, at this level, docstrings."""
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    named = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    digest.update(repr((shape, named)).encode())
    digest.update(code.co_code + code.co_exceptiontable)
    for value in code.co_consts:
        if isinstance(value, CodeType):
            _enter(value, digest)
        else:
            # Sets have no order of their own.
            same = sorted(map(repr, value)) if isinstance(value, frozenset) else value
            digest.update(f"{type(value).__name__} {same!r};".encode())


def _imported(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Modules of this package that statements import, and imported names that may be modules."""
    for node in body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith(PACKAGE + "."):
                yield name.removeprefix(PACKAGE + ".")
        for block in ("body", "orelse", "finalbody", "handlers"):
            yield from _imported(getattr(node, block, ()))


def _source(root: Traversable, name: str) -> Traversable | None:
    *packages, last = name.split(".")
    for place in ((*packages, f"{last}.py"), (*packages, last, "__init__.py")):
        found = root.joinpath(*place)
        if found.is_file():
            return found
    return None


@cache
def _data(folder: Traversable) -> str:
    found = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            found += [] if item.name == OWN_TEXTS else [item.name, _data(item)]
        else:
            found += [item.name, hashlib.sha256(item.read_bytes()).hexdigest()]
    return _short(found)


def _short(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def key_of(*inputs: object) -> str:
    """Digest of a stage's inputs: settings, records and keys of earlier stages."""
    plain = [
        item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in inputs
    ]
    plain += [VERSION]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
