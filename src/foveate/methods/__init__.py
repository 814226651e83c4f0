"""Methods: one idea per file.  Importing this package registers the built-in ones."""

from foveate.methods.agglomerative import Agglomerative
from foveate.methods.atp import ATP
from foveate.methods.base import Method, PixelMethod, ScoredMethod
from foveate.methods.cdpruner import CDPruner
from foveate.methods.cls import Cls
from foveate.methods.cluster import Cluster
from foveate.methods.dart import DART
from foveate.methods.divprune import DivPrune
from foveate.methods.dpc_knn import DpcKnn
from foveate.methods.fastv import FastV
from foveate.methods.hired import HiRED
from foveate.methods.holov import HoloV
from foveate.methods.pool import Pool
from foveate.methods.pool2d import Pool2d
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumerge_plus import PruMergePlus
from foveate.methods.pyramiddrop import PyramidDrop
from foveate.methods.random import Random
from foveate.methods.resize import Resize
from foveate.methods.sparsevlm import SparseVLM
from foveate.methods.sparsevlm_plus import SparseVLMPlus
from foveate.methods.sparsevlm_rank import SparseVLMRank
from foveate.methods.stride import Stride
from foveate.methods.tome import ToMe
from foveate.methods.visionzip import VisionZip
from foveate.methods.vispruner import VisPruner
from foveate.methods.vtw import VTW
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
    "VisionZip",
    "PruMerge",
    "PruMergePlus",
    "VisPruner",
    "HoloV",
    "HiRED",
    "FastV",
    "PyramidDrop",
    "SparseVLM",
    "SparseVLMPlus",
    "SparseVLMRank",
    "DART",
    "ATP",
    "VTW",
    "DivPrune",
    "CDPruner",
    "ToMe",
    "DpcKnn",
    "Agglomerative",
]
