"""Presence: is there anything in a dataset that shows what words ask for?

A row's ratio says how many times likelier its image is under the words than under the average of other words. Rows that
show something else have large ratios by chance, and the more rows, the more of them. Presence therefore compares two
explanations of all rows: none shows the words, or some share of them does (docs/design/0033).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rs_embed.arrays import BoolArray, FloatArray
from rs_embed.embedders.text import unit

Verdict = Literal["present", "unclear", "absent"]

JUDGED = 50
"""Number of best rows whose ratios count; all others count as rows that show something else."""
_MOST = 6.0
"""Logarithm of the largest ratio of one row. Labels and models are wrong once in some hundred rows that look alike."""
_LEAST = -30.0
"""Logarithm that is as good as none."""
PRESENT, ABSENT = 0.7, -0.4
"""Evidence from which words are present, and below which they are absent (`benchmarks/bench_presence.py`)."""
FEW = 0.05
"""Share of rows unlike the training images up to which nothing is said: one in a hundred is so by definition."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Evidence that a dataset holds what words ask for, and what it says of each row."""

    evidence: float
    """Logarithm of the likelihood of the likeliest share of rows that show the words, against that of none."""
    share: float
    """That share."""
    probabilities: FloatArray
    """(n,) probability that each row shows the words, if `share` of the rows do; NaN where it cannot be told."""
    unlike: int
    """Number of rows searched that are unlike the training images, of which the model can say nothing."""
    searched: int

    @property
    def verdict(self) -> Verdict:
        """Answer to the question, with a third value for evidence that chance gives as well, or too few rows."""
        if self.evidence >= PRESENT:
            return "present"
        return "absent" if self.evidence < ABSENT and self.unlike <= FEW * self.searched else "unclear"


def log_ratios(text: FloatArray, others: FloatArray, images: FloatArray, scale: float) -> FloatArray:
    """Return how many times likelier each image (n, d) is under one text (d,) than under the average of others (b, d).

    The result (n,) is the natural logarithm, by the model's own softmax.
    """
    logits = scale * unit(images) @ unit(np.concatenate([text[None], others])).T
    highest = logits[:, 1:].max(axis=1, keepdims=True)
    average = highest[:, 0] + np.log(np.exp(logits[:, 1:] - highest).mean(axis=1))
    ratios: FloatArray = logits[:, 0] - average
    return ratios


def judge(log_ratios: FloatArray, unlike_training: BoolArray, *, searched: int, unlike: int) -> Presence:
    """Judge the best rows of a search, best first.

    Args:
        log_ratios: (n,) logarithm of the ratio of each row.
        unlike_training: (n,) rows of which the model can say nothing; they count neither way.
        searched: number of all rows.
        unlike: number of rows of which the model can say nothing, among all.
    """
    capped = np.clip(np.nan_to_num(log_ratios.astype(np.float64), nan=_LEAST), _LEAST, _MOST)
    ratios = np.where(unlike_training, 1.0, np.exp(capped))
    best = ratios[:JUDGED]
    others = searched - len(best) - (unlike - int(unlike_training[:JUDGED].sum()))
    shares = 2.0 ** np.arange(np.log2(max(searched, 2))) / searched
    found = [np.log1p(share * (best - 1)).sum() + (others * np.log1p(-share) if others else 0.0) for share in shares]
    share = float(shares[int(np.argmax(found))])
    probabilities = share * ratios / (1 + share * (ratios - 1))
    probabilities[unlike_training] = np.nan
    return Presence(float(max(found)), share, probabilities.astype(np.float32), unlike, searched)
