"""Llama 4: an encoder with [CLS] over tiles of an image, and a decoder with chunked attention.  Meta 2025."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from foveate.errors import UnsupportedFamily
from foveate.families.config_fields import kind_of, read_field, read_number
from foveate.families.decoder import rotate_neighbours
from foveate.families.family import Capture, cls_attention
from foveate.families.registry import register_family
from foveate.families.tiling import TiledFamily, TileGrid
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_TILES = 16
"""Tiles of an image, without the whole one, as the processors of all released models have it."""


@register_family
class Llama4(TiledFamily):
    """Llama 4: an image in tiles and then as a whole, [CLS] dropped after the encoder.

    One text token stands between the tiles of a row, another one after each row, and <|image|> before the whole image.
    This text is no part of the image, and always stays. It tells how tiles lie; tiles among other text are an image
    each. Position ids are one-dimensional.

    Most layers of the decoder have rotary embeddings and see a chunk of columns. The others see all earlier columns,
    know no positions, and enlarge the queries of late columns: they count the columns that the layer holds, padding
    included. Every expert runs on every token, and costs are counted so. transformers 5.24.0 can't run these models.

    `EncoderAttention` is the attention of [CLS], summed over the patches of a token. "enlarge" shrinks each tile and
    enlarges it again, which saves no token: the encoder has embeddings for tiles of one size.

    The model takes the output of the encoder's adapter, and applies the last matrix of its projector to what it is
    given. Methods see features behind that matrix; the adapter's output goes along with them.
    """

    name = "llama4"
    title = "Llama 4"
    core_class = "Llama4ForConditionalGeneration"
    since = (5, 20)  # before, its chunks were refused with a static cache
    encoders = ("llama4_vision_model",)
    places = ("pixels", "features", "input", "decoder")
    outside_encoder = "the pixel shuffle after its encoder reads blocks of patches, which merging would break up"
    resize_modes = ("enlarge",)
    counts_padding = True
    words_between_tiles = True
    example: ClassVar[Mapping[str, Any]] = {
        "vision_config": {
            "hidden_size": 1408,
            "projector_input_dim": 4096,
            "projector_output_dim": 4096,
            "vision_output_dim": 4096,
        }
    }
    checkpoints: ClassVar[tuple[str, ...]] = (
        "meta-llama/Llama-4-Scout-17B-16E",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "meta-llama/Llama-4-Maverick-17B-128E",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    )

    def check_config(self) -> None:
        """Check encoder and decoder, and that the adapter takes what the encoder gives and gives what is projected.

        Raises:
            UnsupportedFamily: a part is another one, or sizes don't fit.
        """
        self.check_encoder()
        vision, text = self.config.vision_config, self.config.text_config
        if kind_of(text) != "llama4_text":
            raise UnsupportedFamily(
                f"{self.title} with a decoder of type {kind_of(text)} is not supported; llama4_text is"
            )
        ratio = read_field(vision, "pixel_shuffle_ratio")
        if not isinstance(ratio, int | float) or not 0 < ratio <= 1 or round(1 / ratio) != 1 / ratio:
            raise UnsupportedFamily(
                f"pixel_shuffle_ratio of {self.title} is {ratio!r}; it must be 1 divided by a whole number"
            )
        shuffled = read_number(vision, "hidden_size") * self.merge**2
        for name, value, needed in (
            ("intermediate_size", vision.intermediate_size, shuffled),
            ("projector_output_dim", vision.projector_output_dim, vision.projector_input_dim),
            ("vision_output_dim", vision.vision_output_dim, vision.projector_output_dim),
        ):
            if value != needed:
                raise UnsupportedFamily(
                    f"{name} of {self.title} is {value!r} and has to be {needed}, the width of what comes before it"
                )
        strategy = getattr(vision, "vision_feature_select_strategy", "default")
        if strategy != "default":
            raise UnsupportedFamily(
                f"{self.title} that keeps [CLS] among the visual tokens (vision_feature_select_strategy={strategy!r}) "
                "is not supported; 'default' is"
            )
        if not isinstance(getattr(text, "attention_chunk_size", None), int):
            raise UnsupportedFamily(
                f"the configuration of {self.title} sets no attention_chunk_size, without which no mask can be made"
            )

    # What the configuration alone tells

    @property
    def merge(self) -> int:
        """Patches along one side of a visual token."""
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    @property
    def patch(self) -> int:
        """Pixels along one side of a patch."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def edge(self) -> int:
        """Pixels along one side of a tile."""
        return read_number(self.config.vision_config, "image_size")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels: up to 16, so that it is scaled least."""
        rows, columns = _least_scaled(height, width, self.edge)
        cut = rows * columns
        return self.tiled(TileGrid(cut + 1, rows, columns) if cut > 1 else TileGrid(), self.tile_side)

    def vision_shape(self) -> VisionShape:
        """Read the encoder's sizes, and those of the adapter and the projector behind it."""
        vision = self.config.vision_config
        widths = read_number(vision, "projector_input_dim"), read_number(vision, "projector_output_dim")
        shape = VisionShape.read(self.config, self.patch, merge=self.merge, marks=1, projector_widths=widths)
        return replace(shape, rotary=True)

    # Places in the model

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.core.language_model.model  # pyright: ignore

    @property
    def shortened_module(self) -> nn.Module:
        """The decoder: the core makes logits itself."""
        return self.decoder

    @property
    def tower(self) -> nn.Module:
        """The encoder with its adapter."""
        return self.core.vision_model  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention of each encoder layer."""
        return [layer.self_attn for layer in self.core.vision_model.model.layers]  # pyright: ignore

    @property
    def feature_module(self) -> nn.Module:
        """The adapter's MLP, which reads the patches of a token side by side."""
        return self.core.vision_model.vision_adapter.mlp  # pyright: ignore

    @property
    def projected_module(self) -> nn.Module:
        """The tower: it returns the tiles of all images, behind the adapter."""
        return self.tower

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The adapter, and the matrix behind it."""
        return (self.core.vision_model.vision_adapter, self.core.multi_modal_projector)  # pyright: ignore

    # Tiles

    def tile_counts(self, inputs: Mapping[str, Any]) -> list[int]:
        """Return 1 for each tile: the encoder's output has an entry for each."""
        return [1] * inputs["pixel_values"].shape[0]

    def tile_grids(
        self, input_ids: Tensor, tokens: Sequence[int], tiles: Sequence[int], previews: Tensor | None
    ) -> list[TileGrid] | None:
        """Read how images were cut from the text between their tiles."""
        grids: list[TileGrid] = []
        for row in input_ids.tolist():
            found = _grids_of_row(row, self.image_token, read_number(self.config, "eoi_token_index"), tokens[:1])
            if found is None:
                return None
            grids += found
        return grids if sum(grid.tiles for grid in grids) == len(tiles) else None

    # Encoding

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the encoder on pixels in its own dtype: the processor makes bfloat16 of all."""
        pixels = inputs.get("pixel_values")
        if isinstance(pixels, torch.Tensor):
            dtype: torch.dtype = self.core.vision_model.class_embedding.dtype  # pyright: ignore
            inputs = {**inputs, "pixel_values": pixels.to(dtype)}
        return super().encode(inputs)

    def tower_output(self, output: Any, capture: Capture) -> Any:
        """Give the features the name under which `generate` finds them, too, when it repeats them for beams."""
        output.pooler_output = output.last_hidden_state
        return output

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the output of the adapter behind the projector's matrix, per image `(N, D)`."""
        assert capture.projected is not None
        return self.by_image(self._matrix(capture.projected), capture)

    def companions(self, capture: Capture) -> tuple[tuple[Tensor, ...], ...]:
        """Return the output of the adapter, per image `(N, D_adapter)`, which the model takes."""
        assert capture.projected is not None
        return tuple((image,) for image in self.by_image(capture.projected, capture))

    def project(self, features: Tensor) -> Tensor:
        """Apply the adapter's MLP and the projector's matrix."""
        return self.project_with_companions(features)[0]

    def project_with_companions(self, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Apply the adapter's MLP and the projector's matrix; also return what lies between them."""
        adapted = self.feature_module(features)
        return self._matrix(adapted), (adapted,)

    def _matrix(self, adapted: Tensor) -> Tensor:
        return self.core.multi_modal_projector(adapted)  # pyright: ignore[reportCallIssue]

    @classmethod
    def container(
        cls,
        features: Sequence[Tensor],
        companions: Sequence[Sequence[Tensor]] = (),
        stacked: bool = False,
        row_tokens: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Make a container of what the projector's matrix reads."""
        from foveate.feature_container import repeated_features  # a class of transformers, which layouts don't need

        return {"image": repeated_features([adapted[:] for (adapted,) in companions])}

    # The decoder

    def cos_sin(self, given: Any) -> tuple[Tensor, Tensor]:
        """Return the real and imaginary parts of complex numbers, `(B or 1, S, d / 2)`, each for two neighbours."""
        # `model.to(dtype)` takes the imaginary parts of the encoder's own away, and the encoder goes on without them.
        parts = (given.real, given.imag) if given.is_complex() else (given, torch.zeros_like(given))
        cos, sin = (part.repeat_interleave(2, dim=-1) for part in parts)
        return cos, sin

    def rotate(self, layer: int, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the rotary embedding, which turns neighbours of a head; some layers have none."""
        return rotate_neighbours(values, cos, sin) if self._turns(layer) else values

    def rotated(self, layer: int, projected: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Apply a layer's rotary embedding, and the norm that some models have behind it."""
        heads = super().rotated(layer, projected, rotary).type_as(projected)
        norm = getattr(self.decoder_layers[layer].self_attn, "qk_norm", None)
        return heads if norm is None else norm(heads)

    def query_factor(self, layer: int, positions: Tensor, columns: Tensor) -> Tensor | None:
        """Return what a layer without rotary embedding multiplies the queries of columns by: `(1, M)`."""
        config = self.decoder_config
        if self._turns(layer) or not config.attn_temperature_tuning:
            return None
        return torch.log1p(torch.floor((columns.float() + 1) / config.floor_scale)) * config.attn_scale + 1

    def _turns(self, layer: int) -> bool:
        return bool(self.decoder_config.no_rope_layers[layer])

    # Signals

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention of [CLS] `(N,)` within each token's tile, or keys `(N, D_key)`, means of patches."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        query, key = self.patch_heads(capture, layer)
        if isinstance(signal, EncoderKeys):
            # Before rotary embedding: methods compare the content of keys, not their positions.
            key = key[:, :-1].mean(dim=2) if signal.heads == "mean" else key[:, :-1].flatten(2)
            return self.by_image(self.by_token(key).mean(dim=2), capture)
        tables = self.cos_sin(capture.attention[layer]["freqs_ci"])
        query, key = (rotate_neighbours(each, *tables).type_as(each) for each in (query, key))
        attention: Any = self.encoder_attentions[layer]
        # [CLS] is the last row.
        weights = cls_attention(query[:, -1], key.transpose(1, 2), attention.scaling, signal.heads)
        return self.by_image(self.by_token(weights[:, :-1]).sum(dim=2), capture)


@lru_cache(maxsize=1)
def _arrangements() -> tuple[tuple[int, int], ...]:
    """Return the rows and columns of all arrangements of up to 16 tiles."""
    sides = range(1, MOST_TILES + 1)
    return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= MOST_TILES)


def _least_scaled(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return the rows and columns of the tiles into which an image is scaled up the least, or else down the least.

    Of those that scale it alike the processor takes the smallest. It compares in float32.

    >>> _least_scaled(480, 640, 336), _least_scaled(100, 100, 336), _least_scaled(3000, 4000, 336)
    ((2, 2), (1, 1), (3, 4))
    """
    shapes = torch.tensor(_arrangements())
    scales = (shapes * edge / torch.tensor([height, width])).amin(dim=1)
    enough = scales[scales >= 1]
    chosen = shapes[scales == (enough.min() if len(enough) else scales.max())]
    rows, columns = chosen[chosen.prod(dim=1).argmin()].tolist()
    return rows, columns


def _grids_of_row(ids: Sequence[int], placeholder: int, end: int, tokens: Sequence[int]) -> list[TileGrid] | None:
    """Return how the images of one row of a prompt were cut; None if a run of placeholders is not one tile.

    >>> ids = [6, 9, 9, 1, 9, 9, 2, 3, 9, 9, 7, 5, 6, 3, 9, 9, 7]
    >>> _grids_of_row(ids, placeholder=9, end=7, tokens=[2])
    [TileGrid(tiles=3, rows=1, columns=2), TileGrid(tiles=1, rows=0, columns=0)]

    Args:
        ids: of the row.
        placeholder: the id of visual tokens.
        end: the id of the token after an image's last tile.
        tokens: of a tile; none for a prompt without tiles.
    """
    grids: list[TileGrid] = []
    between: list[list[int]] = []
    place = 0
    while placeholder in ids[place:]:
        begin = ids.index(placeholder, place)
        stop = next((at for at in range(begin, len(ids)) if ids[at] != placeholder), len(ids))
        if stop - begin != (*tokens, 0)[0]:
            return None
        between.append(list(ids[place:begin]))
        place = stop
        if place == len(ids) or ids[place] == end:
            grids += _image(between[1:])
            between = []
    return grids + [TileGrid()] * len(between)


def _image(between: Sequence[Sequence[int]]) -> list[TileGrid]:
    """Return how tiles were cut, from the text between each two of them; without marks of rows, each is an image."""
    if not between:
        return [TileGrid()]
    *inside, last = between
    rows = [number for number, text in enumerate(between, start=1) if list(text[:1]) == list(last[:1])]
    columns = rows[0]
    marks = {tuple(text) for number, text in enumerate(inside, start=1) if number % columns}
    whole = (
        len(last) == 2
        and len(between) % columns == 0
        and rows == list(range(columns, len(between) + 1, columns))
        and all(len(text) == 1 for text in inside)
        and len(marks) == (columns > 1)
    )
    if not whole:
        return [TileGrid()] * (len(between) + 1)
    return [TileGrid(len(between) + 1, len(between) // columns, columns)]
