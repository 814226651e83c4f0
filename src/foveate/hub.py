"""Find models by their name on the Hugging Face hub, and say in one line why one can't be loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import FoveateError, first_line

__all__ = ["explain", "fetch_config", "is_hub_name"]


def is_hub_name(name: str | Path) -> bool:
    """Return whether a text names a model of the hub: "organisation/name", and nothing on this machine.

    >>> is_hub_name("llava-hf/llava-1.5-7b-hf"), is_hub_name("models/llava/7b"), is_hub_name("../llava")
    (True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if isinstance(name, Path) or name.count("/") != 1 or os.path.lexists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def fetch_config(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Find the config.json of a model of the hub in transformers' cache, or download it, and nothing else.

    Args:
        name: "organisation/name".
        revision: a branch, a tag or a commit; None is the main branch.

    Returns:
        The file, and the commit that the revision stands for now.

    Raises:
        FoveateError: there is no such model or revision, it is gated, or the hub can't be reached.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        file = cached_file(name, "config.json", revision=revision)
    except MemoryError:
        raise
    except Exception as error:
        raise explain(error, name, revision) or FoveateError(
            f"the config.json of {name} cannot be loaded ({first_line(error)})"
        ) from error
    if file is None:
        raise FoveateError(f"{name} on the hub has no config.json, so it is not a model that transformers loads")
    return Path(file), extract_commit_hash(file, None)


def explain(error: BaseException, name: str, revision: str | None = None) -> FoveateError | None:
    """Return the error of one line for what huggingface_hub raised, if it is known.

    transformers raises an `OSError` of several lines from most of its errors, so causes are read too.

    Args:
        error: from transformers or huggingface_hub.
        name: "organisation/name".
        revision: as the user wrote it.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from transformers.utils.hub import is_offline_mode

    page = f"{constants.ENDPOINT}/{name}"
    at = "" if revision is None else f" at revision {revision}"
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return FoveateError(
                f"{name} is gated: accept its terms at {page}, then log in (hf auth login) or set HF_TOKEN to a token "
                "of that account"
            )
        if isinstance(cause, DisabledRepoError):
            return FoveateError(f"the hub has disabled {name}; see {page}")
        if isinstance(cause, RepositoryNotFoundError):
            return FoveateError(
                f"{name} is no folder here and no public model of the hub; check the spelling, or, for a private "
                "model, log in (hf auth login) or set HF_TOKEN"
            )
        if isinstance(cause, RevisionNotFoundError):
            return FoveateError(f"{name} has no revision {revision!r}; its branches and tags are at {page}/tree/main")
        if isinstance(cause, HfHubHTTPError) and getattr(cause.response, "status_code", None) in (401, 403):
            return FoveateError(
                f"the hub refuses the token for {name} ({first_line(cause)}); log in again (hf auth login) or correct "
                "HF_TOKEN"
            )
    # An entry that isn't in the cache is the consequence of one of the errors above, if there is one.
    for cause in _causes(error):
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) or _is_of_the_network(cause):
            if is_offline_mode():
                return FoveateError(
                    f"{name}{at} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids downloads; "
                    "unset it, or set HF_HOME to the folder that holds the download"
                )
            return FoveateError(
                f"{name}{at} is neither a folder here nor in the cache, and the hub {constants.ENDPOINT} can't be "
                "reached; check the network (HTTPS_PROXY, HF_ENDPOINT), or name a folder that holds the model"
            )
        if isinstance(cause, HfHubHTTPError) and not isinstance(cause, EntryNotFoundError):
            return FoveateError(f"the hub can't send {name} ({first_line(cause)}); try again later")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    while error is not None:
        yield error
        # transformers raises some of its OSErrors while it handles another error, without naming that as the cause.
        error = error.__cause__ or (error.__context__ if isinstance(error, OSError) else None)


def _is_of_the_network(error: BaseException) -> bool:
    # huggingface_hub lets some errors of its HTTP library through; the library differs between its versions.
    return isinstance(error, ConnectionError | TimeoutError) or (
        type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")
    )
