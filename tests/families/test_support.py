"""Every method on every family: what the engine takes does run, and what it refuses is refused before anything runs."""

import re
import warnings
from typing import Any

import pytest
import torch
from others import OTHERS
from rows import ROWS, Row
from test_contract import CHAT, logits

from foveate import FoveateWarning
from foveate.engine import apply, compress
from foveate.errors import FoveateError
from foveate.families import Family, Generic, family_of
from foveate.listing import Listing, listing
from foveate.schedule import schedule
from foveate.support import spec_for

_models: dict[str, Any] = {}


def refused(spec: str, family: Family) -> str | None:
    """Why the engine refuses a spec; None if it takes it."""
    try:
        schedule(spec, family)
    except FoveateError as error:
        return str(error)
    return None


@pytest.mark.parametrize("method", listing(), ids=lambda method: method.name)
@pytest.mark.parametrize("row", [*ROWS, *(row for row in OTHERS if row.name == "janus")], ids=lambda row: row.name)
def test_every_method_on_every_family(row: Row, method: Listing) -> None:
    if row.name not in _models:
        _models[row.name] = row.model()
    model = _models[row.name]
    inputs = row.inputs(CHAT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        family = family_of(model)
    spec = spec_for(method, len(family.decoder_layers)).replace(":1.0", ":0.5")
    acts = row.takes(spec)
    if method.temporal and acts:
        # An image has one frame: refused when the spec is scheduled, or when the image comes.
        with pytest.raises(FoveateError, match=f"{method.name} works on the frames of a clip"), apply(model, spec):
            logits(model, inputs)
        return
    if (refusal := refused(spec, family)) is not None:
        # What a family of its own refuses would be news, but for what its row says.
        no_pixels = "Pixels()" in refusal and not family.gives_pixels
        assert isinstance(family, Generic) or no_pixels or not acts or not (row.plain or method.place != "decoder")
        with pytest.raises(FoveateError, match=re.escape(refusal)), apply(model, spec):
            pass
        return
    with apply(model, spec) as run:
        found = logits(model, inputs)
    assert found.isfinite().all()
    assert found.shape[1] == inputs["input_ids"].shape[1]
    (image,) = run.report().images
    assert image.before == row.count("A")
    if method.place != "decoder":
        short = compress(model, inputs, spec)
        torch.testing.assert_close(logits(model, short)[:, -1], found[:, -1], atol=1e-4, rtol=1e-4)
    if method.adaptive and image.mean_over_layers == image.before:
        return  # the content may want all of it
    if not row.saves(spec):
        return
    assert image.mean_over_layers < image.before
    assert (found - logits(model, inputs)).abs().max() > 1e-4
