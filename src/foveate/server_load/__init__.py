"""Send a bounded load to an OpenAI-compatible server, and measure throughput and time to the first token by spec.

Dense and compressed requests take turns: a wave of one spec is followed by a wave of the next, about the same images.
So what slows the machine slows all specs, and their ratios within a round stay meaningful.
"""

from __future__ import annotations

from foveate.server_load.client import Server, Timed, check_here
from foveate.server_load.results import rows, write
from foveate.server_load.waves import Load, Sweep, Wave, run

__all__ = ["Load", "Server", "Sweep", "Timed", "Wave", "check_here", "rows", "run", "write"]
