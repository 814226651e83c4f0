"""Look at what a plan does: pictures of what is kept, dropped and merged."""

from foveate.view.heat import HeatMap, draw_maps
from foveate.view.overlay import Panel, draw, draw_panel, save_picture, writable
from foveate.view.strip import Strip, draw_strips

__all__ = ["HeatMap", "Panel", "Strip", "draw", "draw_maps", "draw_panel", "draw_strips", "save_picture", "writable"]
