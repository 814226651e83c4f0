"""The engine: apply specs to models, by pure functions on inputs and by hooks."""

from foveate.engine.apply import Run, apply, attach, attached_spec, detach
from foveate.engine.compress import ShortInputs, compress
from foveate.engine.encode import Encoded, encode
from foveate.engine.images import encoder_outputs
from foveate.engine.prompt import CompressedImage
from foveate.engine.report import ImageCount, ImagePlans, Report
from foveate.engine.timing import Times, timed

__all__ = [
    "apply",
    "attach",
    "attached_spec",
    "detach",
    "compress",
    "encode",
    "encoder_outputs",
    "timed",
    "Run",
    "Report",
    "ImageCount",
    "ImagePlans",
    "CompressedImage",
    "ShortInputs",
    "Encoded",
    "Times",
]
