"""Render a model's chat template: a program that comes with the model, and may fail in any way."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from foveate.errors import FoveateError, first_line

__all__ = ["no_template", "render"]

_SECONDS: Final = 20.0
_LONGEST: Final = 10_000_000
"""Characters of the longest text that is given to a tokenizer, which would work on a longer one for minutes."""


def render(processor: Any, messages: Sequence[Any], generation_prompt: bool) -> str:
    """Write messages as text by a processor's chat template.

    transformers renders in a sandbox: no file, no module and no attribute of Python's own can be reached.

    Args:
        processor: of the model.
        messages: the conversation.
        generation_prompt: end with what comes before the assistant's answer.

    Raises:
        FoveateError: there is no template, it refuses the messages or fails, runs for more than 20 seconds, or writes
            more than ten million characters.
    """

    def apply() -> str:
        return processor.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, tokenize=False)

    text = _within(_SECONDS, apply)
    if len(text) > _LONGEST:
        raise no_template(f"it writes {len(text):,} characters")
    return text


def no_template(reason: str) -> FoveateError:
    """Return the error for a chat template that can't be used."""
    return FoveateError(
        f"the model's processor has no usable chat template ({reason}); add chat_template.jinja to the model"
    )


class _Ended(Exception):
    """Ends a template that takes too long."""


def _within(seconds: float, call: Callable[[], str]) -> str:
    """Return what a call returns, and end it if it takes too long.

    Raises:
        FoveateError: it takes too long, or raises an error.
    """
    done: list[str] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:  # Whatever a program of somebody else raises.
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    if failed:
        raise no_template(first_line(failed[0])) from failed[0]
    # The loop would keep a core busy for as long as this process lives.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Ended))
    raise no_template(f"it is not done after {seconds:.0f} seconds")
