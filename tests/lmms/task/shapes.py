"""What shapes.yaml reads of a row."""

from PIL import Image


def pictures(row):
    return [Image.open(row["image"]).convert("RGB")]


def question(row, lmms_eval_specific_kwargs=None):
    return row["question"]
