"""Look at what a plan does: pictures of what is kept, dropped and merged."""

from foveate.view.heat import HeatMap, draw_maps, draw_values
from foveate.view.overlay import DrawnGrid, Panel, draw, draw_grids, draw_panel, save_picture, writable
from foveate.view.strip import DrawnFrame, Strip, draw_frames, draw_strips

__all__ = [
    "DrawnFrame",
    "DrawnGrid",
    "HeatMap",
    "Panel",
    "Strip",
    "draw",
    "draw_frames",
    "draw_grids",
    "draw_maps",
    "draw_panel",
    "draw_strips",
    "draw_values",
    "save_picture",
    "writable",
]
