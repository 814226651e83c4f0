"""The door to transformers: names are read off signatures and outputs, versions outside the tested range are named."""

import random
import warnings

import pytest
import transformers
from transformers import DynamicCache
from transformers.image_processing_utils import select_best_resolution
from transformers.modeling_outputs import BaseModelOutputWithPast

from foveate import FoveateError, FoveateWarning, transformers_api
from foveate.transformers_api import (
    best_resolution,
    cache_argument,
    cache_name,
    cache_of_call,
    cache_of_output,
    check_version,
)


def old(hidden_states: object, past_key_values: object = None) -> object:
    return past_key_values


def new(hidden_states: object, cache: object = None) -> object:
    return cache


def passes_on(**kwargs: object) -> dict[str, object]:
    return kwargs


def test_the_cache_goes_by_the_name_that_a_signature_has():
    assert (cache_name(old), cache_name(new)) == ("past_key_values", "cache")
    assert old(1, **cache_argument(old, "kept")) == new(1, **cache_argument(new, "kept")) == "kept"


def test_a_call_that_passes_keywords_on_gets_the_name_of_the_installed_models():
    from transformers.models.llama.modeling_llama import LlamaModel

    assert cache_name(passes_on) == cache_name(LlamaModel.forward)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_is_found_by_either_name(name: str):
    cache = DynamicCache()
    assert cache_of_call({"input_ids": 1, name: cache}) is cache
    assert cache_of_call({"input_ids": 1, name: None}) is None


def test_the_cache_of_an_output_is_found_in_a_tuple_and_in_an_output_class():
    cache = DynamicCache()
    name = cache_name(passes_on)
    assert cache_of_output(("hidden", cache)) is cache
    assert cache_of_output(("hidden",)) is None
    assert cache_of_output(BaseModelOutputWithPast(**{name: cache})) is cache
    assert cache_of_output(BaseModelOutputWithPast()) is None


def test_the_installed_version_is_a_tested_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version()
    major, minor = map(int, transformers.__version__.split(".")[:2])
    assert transformers_api.TESTED[0] <= (major, minor) <= transformers_api.TESTED[1]


@pytest.mark.parametrize("version", ["5.25.0.dev0", "6.0.1"])
def test_an_untested_version_warns_once_and_names_the_range(version: str):
    transformers_api._warn_untested.cache_clear()
    with pytest.warns(FoveateWarning, match=rf"tested with transformers 5.19 to 5.24, and this is {version}"):
        check_version(version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version(version)
    transformers_api._warn_untested.cache_clear()


@pytest.mark.parametrize("version", ["5.18.0", "4.57.1"])
def test_a_version_below_the_seam_is_refused(version: str):
    with pytest.raises(FoveateError, match=rf"transformers {version} is too old.*begins with 5.19; install one from"):
        check_version(version)


def test_an_image_is_tiled_as_in_transformers() -> None:
    drawn = random.Random(0)
    for _ in range(500):
        size = drawn.randint(1, 2000), drawn.randint(1, 2000)
        some = [[336 * drawn.randint(1, 6), 336 * drawn.randint(1, 6)] for _ in range(drawn.randint(1, 20))]
        assert best_resolution(size, some) == tuple(select_best_resolution(size, some)), (size, some)
