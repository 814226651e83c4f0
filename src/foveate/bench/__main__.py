"""`python -m foveate.bench` is `foveate bench`, for what starts modules: `accelerate launch -m foveate.bench`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv = ["foveate", "bench", *sys.argv[1:]]
    # By name, since commands stand above this package.
    runpy.run_module("foveate", run_name="__main__")
