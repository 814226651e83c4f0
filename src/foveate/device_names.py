"""What devices are called: a name can be refused before torch, which takes seconds to import, says what is there."""

from __future__ import annotations

import re
from typing import Any, Final

from foveate.errors import FoveateError, quoted

_NAME: Final = re.compile(r"auto|cpu|mps|(?:cuda|xpu|npu|mlu|hpu|musa)(?::[0-9]{1,3})?")


def is_device_name(name: Any) -> bool:
    """Return whether a device can have this name.

    >>> is_device_name("cuda:1"), is_device_name("h100")
    (True, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_device_name(name: Any) -> None:
    """Check that a device can have this name; whether the machine has it is for `foveate.devices` to say.

    Raises:
        FoveateError: it can't.

    >>> check_device_name("cuda:1")
    >>> check_device_name("gpu")
    Traceback (most recent call last):
    foveate.errors.FoveateError: this machine has no device 'gpu'; use cpu, cuda, cuda:1 (the second GPU), mps, or auto
    """
    if not is_device_name(name):
        raise FoveateError(
            f"this machine has no device {quoted(name)}; use cpu, cuda, cuda:1 (the second GPU), mps, or auto"
        )
