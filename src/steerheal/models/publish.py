"""Uploading a finished folder to a model hub, and whether that is possible at all."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from steerheal.errors import UserError, first_line

LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."


def refuse_unwritable(repository: str) -> None:
    """Asks the hub who is logged in, before anything is made that is to be uploaded.

    Raises:
        UserError: no possible name, nobody logged in, a token that only reads, or no answer.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f"--push: {repository!r} is no name of a repository; give owner/name."
        ) from error
    if not get_token():
        raise UserError(f"--push: nobody is logged in at the hub. {LOGIN}")
    try:
        who = HfApi().whoami()
    except HfHubHTTPError as error:
        raise UserError(
            f"--push: the hub refuses the login ({first_line(error)}) {LOGIN}"
        ) from error
    except Exception as error:  # every transport has its own errors
        raise UserError(
            f"--push: the hub does not answer ({first_line(error)}) Export without --push, and "
            "upload the folder later with `hf upload`."
        ) from error
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"--push: the token of {who.get('name')} may only read. {LOGIN}")


def upload(folder: Path, repository: str, message: str) -> str:
    """The folder as one commit of a model repository, and where it is.

    A repository that is not there is made, private; in one that is there, files of the same names
    get a new version and others stay.

    Raises:
        UserError: the hub refuses it or does not answer; the folder stays as it is.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:
        raise UserError(
            f"The export is whole in {folder}, but could not be uploaded to {repository} "
            f"({first_line(error)}) Upload it with `hf upload {repository} {folder}`."
        ) from error
    return str(made)
