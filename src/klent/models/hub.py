"""A model folder to the Hugging Face Hub, as a private repository unless asked otherwise."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from klent.errors import ConfigError, ModelError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class Hub(NamedTuple):
    """A repository that may be written to.

    Attributes:
        api: the hub's, with the token of this machine.
        repository: ``OWNER/NAME``.
    """

    api: "HfApi"
    repository: str


def open_hub(repository: str) -> Hub:
    """Who is asked, before anything is written: is there a token, and does the hub know it?

    Raises:
        ConfigError: no name of a repository, no token, or one that the hub does not take.
        ModelError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(
            f"--push {repository}: not a valid repository name: {first_line(error).rstrip('.')}. Write OWNER/NAME"
        ) from error
    if repository.count("/") != 1:
        raise ConfigError(f"--push {repository}: the owner is missing; write OWNER/{repository}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError("--push needs the hub, and HF_HUB_OFFLINE is set. Unset it")
    if get_token() is None:
        raise ConfigError(
            "--push needs a token of the Hugging Face Hub that may write, and there is none here. Log in with "
            "`hf auth login`, or set HF_TOKEN; without --push the folder is only written"
        )
    api = HfApi()
    try:
        api.whoami()
    except HfHubHTTPError as error:
        raise ConfigError(
            f"--push: the hub does not take this machine's token: {first_line(error)}. Log in again with "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception as error:  # the HTTP client's own errors, which differ from version to version
        raise ModelError(f"--push: the hub cannot be reached: {first_line(error)}") from error
    return Hub(api, repository)


def push_folder(hub: Hub, folder: Path, *, public: bool, message: str) -> str:
    """Upload a folder in one commit; a repository that does not exist is made, private unless ``public``.

    Returns:
        The repository's address. One that exists keeps its visibility.

    Raises:
        ModelError: the hub refused, with its reason; the folder stays.
    """
    try:
        made = hub.api.create_repo(hub.repository, private=not public, exist_ok=True)
        hub.api.upload_folder(repo_id=hub.repository, folder_path=folder, commit_message=message)
    except Exception as error:  # refusals of the hub, and whatever its HTTP client raises
        raise ModelError(
            f"--push: {hub.repository} was not written: {first_line(error)}. The model is in {folder}; upload it "
            f"with `hf upload {hub.repository} {folder}`"
        ) from error
    return str(made)
