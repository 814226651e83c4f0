"""Methods: one idea per file.  Importing this package registers the built-in ones."""

from foveate.methods.agglomerative import Agglomerative
from foveate.methods.base import Method, PixelMethod, ScoredMethod
from foveate.methods.cdpruner import CDPruner
from foveate.methods.cls import Cls
from foveate.methods.cluster import Cluster
from foveate.methods.divprune import DivPrune
from foveate.methods.dpc_knn import DpcKnn
from foveate.methods.fastv import FastV
from foveate.methods.pool import Pool
from foveate.methods.pool2d import Pool2d
from foveate.methods.pyramiddrop import PyramidDrop
from foveate.methods.random import Random
from foveate.methods.resize import Resize
from foveate.methods.stride import Stride
from foveate.methods.tome import ToMe
from foveate.methods.vtw import Vtw
from foveate.spec import method_class, method_names, register

__all__ = [
    "Method",
    "PixelMethod",
    "ScoredMethod",
    "register",
    "method_names",
    "method_class",
    "Random",
    "Stride",
    "Pool",
    "Pool2d",
    "Resize",
    "Cluster",
    "Cls",
    "FastV",
    "PyramidDrop",
    "Vtw",
    "DivPrune",
    "CDPruner",
    "ToMe",
    "DpcKnn",
    "Agglomerative",
]
