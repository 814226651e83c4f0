"""Find models by their name on the Hugging Face hub, and say in one line why one can't be loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from foveate.errors import FoveateError, first_line

__all__ = ["HubFile", "explain", "fetch_config", "hub_answers", "is_hub_name"]

_ATTEMPTS: Final = 2
_REMEMBERED_SECONDS: Final = 60.0


def is_hub_name(name: str | Path) -> bool:
    """Return whether a text names a model of the hub: "organisation/name", and nothing on this machine.

    >>> is_hub_name("llava-hf/llava-1.5-7b-hf"), is_hub_name("models/llava/7b"), is_hub_name("../llava")
    (True, False, False)
    """
    if isinstance(name, Path) or name.count("/") != 1 or os.path.lexists(name):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@dataclass(frozen=True)
class HubFile:
    """A file of the hub on this machine.

    Attributes:
        path: of the file.
        commit: that the revision stands for now.
        answers: whether the hub can be reached; else only what is in the cache can be read.
    """

    path: Path
    commit: str | None
    answers: bool


def hub_answers(name: str, revision: str | None = None) -> bool:
    """Return whether the hub can be reached; False if HF_HUB_OFFLINE forbids to ask.

    Without a network, huggingface_hub tries again for half a minute, for each file. This asks twice, and remembers the
    answer for a minute. Whatever the hub answers counts, errors too, and so does a hub that is slow.

    Args:
        name: "organisation/name", of which it asks.
        revision: a branch, a tag or a commit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from transformers.utils.hub import is_offline_mode

    if is_offline_mode():
        return False
    page = hf_hub_url(name, "config.json", revision=revision)
    asked = _asked.get(_host(page))
    if asked is not None and time.monotonic() - asked[0] < _REMEMBERED_SECONDS:
        return asked[1]
    answers = True
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(1)
        try:
            get_hf_file_metadata(page)
        except MemoryError:
            raise
        except Exception as error:  # What can't be reached is told by its kind; all else is the hub's answer.
            answers = not any(type(cause).__name__ in _UNREACHABLE for cause in _causes(error))
        else:
            answers = True
        if answers:
            break
    _asked[_host(page)] = time.monotonic(), answers
    return answers


_UNREACHABLE: Final = ("ConnectError", "ConnectTimeout", "ProxyError")
"""Errors of the HTTP libraries of huggingface_hub for a host that can't be connected to."""

_asked: Final[dict[str, tuple[float, bool]]] = {}
"""When each host was asked, and whether it answered."""


def _host(page: str) -> str:
    return "/".join(page.split("/")[:3])


def fetch_config(name: str, revision: str | None = None) -> HubFile:
    """Find the config.json of a model of the hub in transformers' cache, or download it, and nothing else.

    Args:
        name: "organisation/name".
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        FoveateError: there is no such model or revision, it is gated, or the hub can't be reached.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    answers = hub_answers(name, revision)
    try:
        file = cached_file(name, "config.json", revision=revision, local_files_only=not answers)
    except MemoryError:
        raise
    except Exception as error:
        raise explain(error, name, revision) or FoveateError(
            f"the config.json of {name} cannot be loaded ({first_line(error)})"
        ) from error
    if file is None:
        raise FoveateError(f"{name} on the hub has no config.json, so it is not a model that transformers loads")
    return HubFile(Path(file), extract_commit_hash(file, None), answers)


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
