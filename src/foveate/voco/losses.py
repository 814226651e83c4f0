"""Losses of text after VoCo memories: next-token cross-entropy, and distillation from the dense model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.voco.prompt_rows import IGNORED


@dataclass(frozen=True)
class VoCoOutput:
    """What `VoCo.forward` returns.

    Attributes:
        logits: `(B, T, vocabulary)` of the text, padded on the left.
        labels: `(B, T)` int64 of the text, -100 where the loss leaves a token out; None if no labels came.
        loss: the mean cross-entropy of the next token, a scalar; None without labels.
    """

    logits: Float[Tensor, "B T vocabulary"]
    labels: Int64[Tensor, "B T"] | None
    loss: Float[Tensor, ""] | None


def cross_entropy(logits: Float[Tensor, "B T vocabulary"], labels: Int64[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the next token over all labels but -100, a scalar.

    Raises:
        FoveateError: all labels are -100.
    """
    learned = labels[:, 1:] != IGNORED
    if not learned.any():
        raise FoveateError("no label is left to learn from; labels must hold the answer, -100 elsewhere")
    return nn.functional.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned])


def distillation(
    student: VoCoOutput,
    logits: Float[Tensor, "B S vocabulary"],
    labels: Int64[Tensor, "B S"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the KL divergence from the dense model's next-token distribution, a scalar.

    VoCo-LLaMA, Ye et al. 2024, arXiv 2406.12275, Eq. 1, which the authors' code leaves out.

    Args:
        student: what `VoCo.forward` returned.
        logits: `(B, S, vocabulary)`, the dense model's on the same batch.
        labels: `(B, S)` int64 of the dense batch, with the same answers in the same order.
        temperature: divides the logits of both.
    """
    assert student.labels is not None
    own = student.logits[:, :-1][student.labels[:, 1:] != IGNORED].float() / temperature
    dense = logits[:, :-1][labels[:, 1:] != IGNORED].float() / temperature
    return nn.functional.kl_div(own.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="batchmean") * (
        temperature**2
    )
