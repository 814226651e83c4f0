"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.device_names import check_device_name
from foveate.embedded.clips import CLIP_PATH
from foveate.errors import FoveateError

ImageArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE",
        help="An image file, or a clip: a video file, an animation, a folder of frames.",
        show_default=False,
    ),
]

CLIP_PANEL = "Clips"
"""The heading under which help lists the options that choose frames."""

FramesOption = Annotated[
    int | None,
    typer.Option(
        "--frames",
        metavar="N",
        help="Of a clip: how many frames, evenly spaced in time.",
        show_default="8",
        rich_help_panel=CLIP_PANEL,
    ),
]

FpsOption = Annotated[
    float | None,
    typer.Option(
        "--fps",
        metavar="F",
        help="Of a clip: how many frames of each second.",
        show_default=False,
        rich_help_panel=CLIP_PANEL,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A folder with a Hugging Face model, or its name on the hub.",
        show_default="the embedded model; of clips, the embedded one for clips",
    ),
]

RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REVISION",
        help="Of a model on the hub: a branch, a tag or a commit.",
        show_default=False,
    ),
]

SpecsOption = Annotated[
    list[str] | None,
    typer.Option("--spec", metavar="SPEC", help="How to compress, for instance cluster:64. Repeat for more."),
]

DEFAULT_SPECS: list[str] = ["cluster:64"]
"""What `--spec` is where a command needs one."""

PANEL = "Device and number format"
"""The heading under which help lists the options of `placement_arguments`."""


def checked_device(name: str | None) -> str | None:
    """Refuse what no device is called before the command imports torch."""
    if name is not None:
        check_device_name(name)
    return name


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=checked_device,
        help="Where to run: cpu, cuda, cuda:1, mps.",
        show_default="cuda if there is a GPU, else cpu",
        rich_help_panel=PANEL,
    ),
]

DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16, float16, or auto: as saved.",
        show_default="auto; float32 for the embedded model",
        rich_help_panel=PANEL,
    ),
]

DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="MAP",
        help="Spread the model over all devices: auto, balanced, balanced_low_0, sequential.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]

QuantizeOption = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="BITS",
        help="Load linear layers in 4bit (nf4) or 8bit, by bitsandbytes.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]

MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, max=1_000_000, help="The longest answer, in tokens.")
]

QuestionsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help='Your own questions: a JSONL file of {"image", "question", "answer"}, or "video"; "skill" is optional.',
        show_default="generated scenes",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def model_for(model: str | None, *, clips: bool) -> str | None:
    """Return the model that a command uses: where none is named, the embedded one, and for clips the one for clips.

    >>> model_for(None, clips=False), model_for("org/name", clips=True)
    (None, 'org/name')
    """
    return str(CLIP_PATH) if model is None and clips else model


def model_title(model: Path | str | None, revision: str | None = None) -> str:
    """Return the name of a model in results.

    >>> model_title(None), model_title("org/name", "v1")
    ('the embedded model', 'org/name at v1')
    """
    embedded = {None: "the embedded model", str(CLIP_PATH): "the embedded model for clips"}
    title = embedded.get(model if model is None else str(model), str(model))
    return title if revision is None else f"{title} at {revision}"


def placement_arguments(
    device: str | None, dtype: str | None, device_map: str | None, quantize: str | None
) -> dict[str, Any]:
    """Return the options that place a model as arguments of `load_model`, after checking that they can be met.

    Raises:
        FoveateError: a device or a package isn't there, or two of the options exclude each other.
    """
    from foveate.devices import load_arguments

    if device is not None and device_map is not None:
        raise FoveateError(
            f"--device {device} and --device-map {device_map} exclude each other: the first puts the whole model on "
            "one device, the second spreads it; give one of them"
        )
    if device is None and device_map is None:
        device = "auto"
    arguments = {"device": device, "dtype": dtype, "device_map": device_map, "quantize": quantize}
    load_arguments(**arguments)
    return arguments
