"""What differs between the versions of transformers that the suite runs with."""

from transformers.models.llama.modeling_llama import LlamaModel

from foveate.transformers_api import cache_name, cache_of_output

__all__ = ["CACHE", "cache_of_output"]

CACHE = cache_name(LlamaModel.forward)
"""What models of the installed version call their cache."""
