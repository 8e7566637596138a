"""What makes a stage: digests of its inputs, and of the modules that compute it, without a run.

A module belongs to a stage when the modules that it names import it, directly or through others of
this package. What a module says to a reader does not count: comments, blank lines and docstrings.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import CodeType
from typing import Protocol, runtime_checkable

from pydantic import BaseModel

from steerheal.records import VERSION

PACKAGE = "steerheal"
JOINS = ("pipeline.declared", "pipeline.stage", "pipeline.stages")
"""They put the stages together, and count for every one."""
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scipy")
"""Whose arithmetic a result is; another version may round otherwise."""
OWN_TEXTS = "personas"
"""Bundled texts that enter a stage's key by what they say."""


def made_by(modules: Sequence[str]) -> str:
    """Digest of the code, bundled data and libraries behind a stage that these modules make."""
    return _made_by(tuple(modules))


@cache
def _made_by(modules: tuple[str, ...]) -> str:
    root = files(PACKAGE)
    found = [version(name) for name in LIBRARIES]
    try:
        found += [digest_of(modules, root), _data(root.joinpath("data"))]
    except (OSError, SyntaxError, UnicodeDecodeError):  # installed without readable sources
        found.append(version(PACKAGE))
    return _short(found)


def digest_of(modules: Sequence[str], root: Traversable) -> str:
    """Digest of these modules and of all that they import, in the package at `root`.

    Raises:
        OSError: a source cannot be read.
    """
    names = modules_of(modules, root)
    return _short([f"{name} {_module(root, name)[0]}" for name in (*names, *JOINS)])


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


@runtime_checkable
class Keyed(Protocol):
    """What says itself what it is."""

    @property
    def key(self) -> str:
        """Digest of everything that makes it."""
        ...


def key_of(*inputs: object) -> str:
    """Digest of inputs: records and settings by what they hold, others by their own keys."""
    plain = [*map(_plain, inputs), VERSION]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.key if isinstance(value, Keyed) else value
