"""Write one spec for every method, so that all keep about the same share of the tokens in the last layer."""

from __future__ import annotations

from foveate.methods import Method, method_class, method_names
from foveate.schedule import scaled_layers

SAME_ON_IMAGES = {"pool3d": "pool2d", "stride3d": "stride"}
"""Methods that do on an image what another one does."""


def every(depth: int, keep: float) -> list[str]:
    """Return a spec per method of the package that has a rule of its own for images, at its default place.

    Args:
        depth: layers of the decoder. Authors name layers of one of 32; theirs are scaled.
        keep: the share that is left behind the last step. A method that acts at several layers leaves the same share
            at each.

    >>> [spec for spec in every(24, 0.111) if spec.startswith(("cls", "fastv", "pyramiddrop", "vtw"))]
    ['cls:0.111', 'fastv:0.111@2', 'pyramiddrop:0.481@6,12,18', 'vtw@11']
    """
    found: list[str] = []
    for name in method_names():
        method: type[Method] = method_class(name)
        if not method.__module__.startswith("foveate.methods.") or method.trained:
            continue
        if method.temporal or name in SAME_ON_IMAGES:
            continue
        layers = scaled_layers(method.layers, depth) if method.place == "decoder" else []
        share = f":{keep ** (1 / max(1, len(layers))):.3g}" if method.takes_keep else ""
        found.append(name + share + (f"@{','.join(map(str, layers))}" if layers else ""))
    return found
