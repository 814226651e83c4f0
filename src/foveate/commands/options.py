"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.errors import FoveateError

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)]

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="DIR", help="A folder with a Hugging Face model.", show_default="the embedded model"
    ),
]

SpecsOption = Annotated[
    list[str] | None,
    typer.Option("--spec", metavar="SPEC", help="How to compress, for instance cluster:64. Repeat for more."),
]

DEFAULT_SPECS: list[str] = ["cluster:64"]
"""What `--spec` is where a command needs one."""

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Where to run: cpu, cuda, cuda:1.", show_default="cuda if there is a GPU"
    ),
]

MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="The longest answer, in tokens.")
]

QuestionsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help='Your own questions: a JSONL file of {"image", "question", "answer"}; "skill" is optional.',
        show_default="generated scenes",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def model_title(model: Path | str | None) -> str:
    """Return the name of a model in results.

    >>> model_title(None)
    'the embedded model'
    """
    return "the embedded model" if model is None else str(model)


def usable_device(name: str) -> str:
    """Return the torch device that `--device` names; "auto" is a GPU if there is one, else the CPU.

    Raises:
        FoveateError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise FoveateError(f"this machine has no device {name!r}; use cpu, or cuda where there is a GPU") from None
    return name
