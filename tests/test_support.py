"""What `foveate.support` says of families and of released models."""

import re
from collections import Counter

from foveate.families import families, family_class
from foveate.listing import every_family
from foveate.support import example_family, released_as


def test_no_two_families_name_the_same_released_model() -> None:
    names = Counter(name for each in every_family() for name in each.checkpoints)
    assert not [name for name, count in names.items() if count > 1]
    assert len(names) > 60
    assert not [name for name in names if not re.fullmatch(r"[\w-]+/[\w.-]+", name)]
    assert released_as("llava-hf/LLAVA-1.5-7B-hf") is not None
    assert released_as("llava-hf/llava-1.5-7b") is None


def test_an_example_of_each_family_is_of_that_family() -> None:
    for each in families():
        assert family_class(example_family(each).config) is each
