"""Whether a name can be a model of the hub, and whether the hub answers, within seconds."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from steerheal.errors import UserError, first_line

PATIENCE = 5.0
"""Seconds that the hub has to answer once; its own client would try again for a minute."""
FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json")
"""Endings of names that mean a file, not a repository."""
ADVICE = "Give nothing (the embedded model), a hub id, a local folder or a GGUF file."


def refuse_no_id(name: str) -> None:
    """A name that is neither a path nor a possible hub id is refused without asking anybody.

    Raises:
        UserError: it is no possible hub id.
    """
    if Path(name).suffix.lower() in FILES:
        kind = "GGUF file" if name.lower().endswith(".gguf") else "file"
        raise UserError(f"There is no {kind} {name}. {ADVICE}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"Cannot load model {name!r}: there is no such folder or file, and it cannot be a hub "
            f"id (owner/model). {ADVICE}"
        ) from error


def only_cached(name: str, revision: str | None) -> bool:
    """Whether the model has to come from the local cache: the hub does not answer, or may not.

    Raises:
        UserError: it is neither in the cache nor to be had from the hub.
    """
    cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        why = f"the hub knows no such model, or not for you ({first_line(error)})"
    except HfHubHTTPError:
        return False  # a mirror may serve files and nothing else
    except OfflineModeIsEnabled:
        why = "the hub is switched off (HF_HUB_OFFLINE)"
    except Exception as error:  # noqa: BLE001  every transport has its own errors
        why = f"the hub cannot be reached ({first_line(error)})".replace(".)", ")")
    else:
        return False
    if cached:
        return True
    raise UserError(
        f"Cannot load model {name!r}: there is no such folder or file, it is not in the local "
        f"cache, and {why}. {ADVICE}"
    )


def folder_of(name: str, revision: str | None) -> Path:
    """A model's folder on this disk: where it lies, or where the hub's client keeps it.

    Raises:
        UserError: it is not there whole.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"The files of {name} are not in the local cache: {first_line(error)}"
        ) from error


def licence(source: str) -> str:
    """A model's licence by its card, in a folder or on the hub; empty where nobody says it."""
    folder = Path(source).expanduser()
    with suppress(Exception):  # a card is free text, and every transport has its own errors
        card = folder / "README.md" if folder.exists() else _cached(source)
        data = None
        if card is not None and card.is_file():
            data = ModelCard.load(card).data
        elif not folder.exists():
            data = HfApi().model_info(source, timeout=PATIENCE).card_data
        return str(getattr(data, "license", None) or "")
    return ""


def _cached(source: str) -> Path | None:
    found = try_to_load_from_cache(source, "README.md")
    return Path(found) if isinstance(found, str) else None
