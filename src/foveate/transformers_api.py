"""The one door to transformers: every name there that changes between versions is read here, off the model at hand.

Nothing below looks at a version to tell how a model is called; signatures and outputs say it. The version is looked at
once, to warn where foveate was never tested.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from foveate.errors import FoveateError, FoveateWarning

OLDEST = (5, 18)
"""The first version whose models take image features in place of pixels (`mm_encoder_outputs`)."""
TESTED = ((5, 23), (5, 24))
"""The first and the last minor version that the test suite runs with."""
_CACHE_NAMES = ("past_key_values", "cache")
"""What models call the cache: up to 5.23, and from 5.24 on."""


# The cache in a call


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the name under which a `forward` of transformers takes the cache.

    >>> def forward(hidden_states, past_key_values=None): ...
    >>> cache_name(forward)
    'past_key_values'
    """
    return _cache_name(getattr(forward, "__func__", forward))


@lru_cache(maxsize=256)
def _cache_name(forward: Callable[..., Any]) -> str:
    names = inspect.signature(forward).parameters
    return next((name for name in reversed(_CACHE_NAMES) if name in names), _default_cache_name())


@lru_cache(maxsize=1)
def _default_cache_name() -> str:
    """Return the name that this version's models use, for a `forward` that passes its keywords on unread."""
    from transformers.models.llama.modeling_llama import LlamaModel

    names = inspect.signature(LlamaModel.forward).parameters
    return next(name for name in reversed(_CACHE_NAMES) if name in names)


def cache_argument(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Return the keyword that hands a cache to a `forward` of transformers, for `forward(..., **cache_argument(...))`.

    >>> def forward(hidden_states, cache=None): ...
    >>> cache_argument(forward, None)
    {'cache': None}
    """
    return {cache_name(forward): cache}


def cache_of_call(call: Mapping[str, Any]) -> Any:
    """Return the cache among the keywords of a call, whatever it is called there; None if there is none.

    >>> cache_of_call({"past_key_values": "kept"}), cache_of_call({"input_ids": 1})
    ('kept', None)
    """
    return next((call[name] for name in _CACHE_NAMES if call.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """Return the cache that a model gave back, in a tuple or in an output of its own class; None if there is none."""
    if isinstance(output, tuple):
        return next((value for value in output if hasattr(value, "get_seq_length")), None)
    return next((output[name] for name in _CACHE_NAMES if name in output), None)


# The version


def check_version(version: str | None = None) -> None:
    """Check that the installed transformers can work: refuse it below the seam, warn once outside the tested range.

    Raises:
        FoveateError: the version is older than the first whose models take image features in place of pixels.

    >>> check_version("5.23.0")
    """
    if version is None:
        import transformers

        version = transformers.__version__
    found = tuple(int(part) for part in version.split(".")[:2])
    tested = " to ".join(f"{major}.{minor}" for major, minor in TESTED)
    if found < OLDEST:
        raise FoveateError(
            f"transformers {version} is too old: its models can't take image features in place of pixels, which begins "
            f"with {OLDEST[0]}.{OLDEST[1]}; install one from {tested}"
        )
    if not TESTED[0] <= found <= TESTED[1]:
        _warn_untested(version, tested)


@lru_cache(maxsize=8)
def _warn_untested(version: str, tested: str) -> None:
    warnings.warn(
        f"foveate is tested with transformers {tested}, and this is {version}; check a few answers against the "
        "uncompressed model's",
        FoveateWarning,
        stacklevel=4,
    )
