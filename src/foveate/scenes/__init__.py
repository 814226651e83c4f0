"""Scenes: generated images and questions about them, exact, balanced and seeded.

A scene is an image of 192 x 192 pixels (24 x 24 patches of 8) with about ten questions that each have one right answer:
coloured shapes at continuous places, crowds, rendered words and numbers, dense lists, bar charts and tiny things on
textured grounds. Imports numpy, Pillow and the standard library, nothing of the rest of the project.

>>> from foveate.scenes import scene, test_set
>>> one = next(test_set())  # the fixed test set: an iterator of scenes
>>> one.id, one.image.size, one.image.mode  # a PIL image
('test-000000', (192, 192), 'RGB')
>>> q = one.questions[0]  # text and answer are lower-case words parted by spaces
>>> q.skill in ("exist", "count", "attribute", "where", "relation", "read_text", "read_value", "find_small")
True
>>> q.text.endswith(" ?"), len(q.answer.split())
(True, 1)

``clip(seed, frames=8, kind="camera")`` makes the frames of a video: what moves where, what comes first, what changes;
``.shuffled()`` is its control. ``CLIP_KINDS`` names the kinds and what each asks for.

``question_only_floor(train_questions, test_questions)`` gives the accuracy per skill of answering without looking.
"""

from foveate.scenes.clips import CLIP_KINDS, CLIP_SKILLS, Clip, clip
from foveate.scenes.compose import CANVAS, KINDS
from foveate.scenes.generate import TEST_QUESTIONS, Scene, question_only_floor, scene, test_set
from foveate.scenes.questions import Question, caption
from foveate.scenes.things import Thing
from foveate.scenes.vocabulary import COLOURS, PLACES, SHAPES, SIZES, SKILLS, WORDS

__all__ = [
    "Scene",
    "Clip",
    "Question",
    "Thing",
    "scene",
    "clip",
    "test_set",
    "question_only_floor",
    "caption",
    "CANVAS",
    "KINDS",
    "TEST_QUESTIONS",
    "COLOURS",
    "PLACES",
    "SHAPES",
    "SIZES",
    "SKILLS",
    "CLIP_KINDS",
    "CLIP_SKILLS",
    "WORDS",
]
