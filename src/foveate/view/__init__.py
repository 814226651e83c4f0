"""Look at what a plan does: pictures of what is kept, dropped and merged."""

from foveate.view.overlay import Panel, draw, draw_panel, save_picture, writable

__all__ = ["Panel", "draw", "draw_panel", "save_picture", "writable"]
