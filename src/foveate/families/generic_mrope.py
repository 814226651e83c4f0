"""The fallback for models with the positions of Qwen2-VL that no family describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.family import Capture
from foveate.families.generic import Generic, has_position_axes, runs_by_image
from foveate.families.mrope import MRope
from foveate.families.wrappers import cores_of
from foveate.tokens import Layout, Segment
from foveate.transformers_api import rope_index

if TYPE_CHECKING:
    from torch import Tensor, nn

_PROMPTS = (((2, 3),), ((4, 1), (1, 5)), ((1, 1), (3, 3)))
"""Rows and columns of the images of three prompts, for which position ids are compared."""


class GenericMRope(MRope, Generic):
    """A model that no family describes, with positions of Qwen2-VL: `image_grid_thw` has the grid of each image.

    That they are those of Qwen2-VL is checked: for some prompts when the model is first seen, and for each grid when it
    comes first, the model's own `get_rope_index` must give what is computed here.
    """

    knows_grids = True
    encoder_arguments = ("image_grid_thw",)
    taken_as = "An image is taken as the grid that image_grid_thw says, with positions of Qwen2-VL"
    position_types = frozenset({"mm_token_type_ids"})

    def check_positions(self) -> None:
        """Check that the model's position ids are those of Qwen2-VL.

        Raises:
            UnsupportedFamily: they are not.
        """
        vision = getattr(self.config, "vision_config", None)
        merge = getattr(vision, "spatial_merge_size", None)
        known = hasattr(self.core, "get_rope_index") and hasattr(self.core, "rope_deltas")
        if not known or not isinstance(merge, int) or "image_grid_thw" not in self.pixel_inputs:
            raise UnsupportedFamily(
                "its position ids have several axes, and it lacks what tells them without a family: get_rope_index and "
                "rope_deltas, image_grid_thw, and spatial_merge_size in vision_config"
            )
        prompts = [[Layout((Segment(1, *grid),)) for grid in grids] for grids in _PROMPTS]
        if not self._agrees(prompts):
            raise UnsupportedFamily(
                "its position ids have several axes and are not those of Qwen2-VL, which only a family of its own can "
                "tell"
            )
        self._checked: set[Layout] = set()

    def encoded(self, output: Any, arguments: Mapping[str, Any]) -> Capture:
        """Make a capture with the features of each image, and the grids of `image_grid_thw`.

        Raises:
            FoveateError: features and grids differ in number, or the model's positions for a grid aren't those of
                Qwen2-VL.
        """
        capture = super().encoded(output, arguments)
        layouts = self.layouts(arguments)
        made, told = [each.total for each in capture.layouts], [each.total for each in layouts]
        if made != told:
            raise FoveateError(
                f"the encoder of {self.title} makes {made} tokens of the images, and image_grid_thw counts {told}; "
                "only a family of its own can tell its grids"
            )
        for layout in {*layouts} - self._checked:
            if not self._agrees([[layout]]):
                (grid,) = layout.segments
                raise FoveateError(
                    f"{self.title} gives an image of {grid.t} x {grid.h} x {grid.w} tokens other positions than "
                    "Qwen2-VL does, so only a family of its own can tell them"
                )
            self._checked.add(layout)
        return Capture(layouts, layouts, extra=capture.extra)

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Check that each image is one run of placeholders.

        Raises:
            FoveateError: text stands between the placeholders of an image.
        """
        if input_ids is not None:
            runs, sizes = self.placeholder_runs(input_ids), [layout.total for layout in capture.layouts]
            whole = sum(runs) == sum(sizes[image] for image in order)
            if whole and any(len(pieces) > 1 for pieces in runs_by_image(order, sizes, runs).values()):
                raise FoveateError(
                    f"text stands between the placeholders of an image, and which positions {self.title} gives it only "
                    "a family of its own can tell; pass what its processor returned, unchanged"
                )
        return capture, order

    def _agrees(self, prompts: Sequence[Sequence[Layout]]) -> bool:
        """Return whether the model gives a padded batch of prompts with these images the position ids of this class."""
        special = {value for name, value in vars(self.config).items() if name.endswith("_token_id")}
        text = next(number for number in range(len(special) + 1) if number not in special)
        before, after = (
            [value for value in (getattr(self.config, name, None) for name in names) if isinstance(value, int)][:1]
            for names in (
                ("vision_start_token_id", "image_start_token_id"),
                ("vision_end_token_id", "image_end_token_id"),
            )
        )
        rows: list[list[int]] = []
        expected: list[Tensor] = []
        for number, layouts in enumerate(prompts):
            ids, pieces = [text] * (number + 2), [torch.arange(number + 2).expand(3, -1)]
            following = number + 2
            for layout in layouts:
                ids += [*before, *[self.image_token] * layout.total, *after, text]
                pieces.append(torch.arange(len(before)).expand(3, -1) + following)
                following += len(before)
                pieces.append(self.image_positions(layout) + following)
                following += self.image_spans(layout)[0]
                pieces.append(torch.arange(len(after) + 1).expand(3, -1) + following)
                following += len(after) + 1
            rows.append(ids)
            expected.append(torch.cat(pieces, dim=1))
        width = max(len(ids) for ids in rows)
        batch = torch.tensor([[text] * (width - len(ids)) + ids for ids in rows])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
        grids = [
            (grid.t, grid.h * self.merge, grid.w * self.merge)
            for layouts in prompts
            for layout in layouts
            for grid in layout.segments
        ]
        types = (batch == self.image_token).int()
        found = rope_index(self.core, batch, types, torch.tensor(grids), mask)
        if found is None or found[0].shape != (3, *batch.shape) or found[1].shape != (len(rows), 1):
            return False
        own, deltas = found[0].cpu(), found[1].flatten().tolist()
        return all(
            torch.equal(own[:, row, -positions.shape[1] :], positions)
            and deltas[row] == int(positions.max()) + 1 - positions.shape[1]
            for row, positions in enumerate(expected)
        )


def generic_family(model: nn.Module, why: str) -> Generic:
    """Make the family of a model that no family describes.

    Raises:
        UnsupportedFamily: nothing can be done with it.
    """
    several = any(has_position_axes(core) for core in cores_of(model)[-1:])
    return (GenericMRope if several else Generic)(model, why)
