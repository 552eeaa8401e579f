"""The rule for verdicts on whether a dataset holds what words ask for, and for imagery that no verdict holds for."""

from __future__ import annotations

import numpy as np
import pytest

from rs_embed.embedders.cards import find_card
from rs_embed.embedders.familiarity import find_statistics
from rs_embed.embedders.text import likelihoods, load_text_embedder, unit
from rs_embed.search.presence import JUDGED, judge, log_ratios
from rs_embed.search.query import word_log_ratios, word_probabilities

MODEL = "clip_eurosat_s2rgb"


def judged(ratios: list[float], searched: int, unlike: int = 0):
    """Judge rows, the first `unlike` of which are unlike the training images."""
    strange = np.arange(len(ratios)) < unlike
    return judge(np.array(ratios, np.float32), strange, searched=searched, unlike=unlike)


@pytest.fixture(scope="module")
def texts():
    return load_text_embedder(find_card(MODEL), checkpoint=None, device="cpu")


def test_a_ratio_is_the_softmax_s_odds_times_the_number_of_other_words(texts):
    rng = np.random.default_rng(0)
    text, *others = unit(rng.normal(size=(6, 16)).astype(np.float32))
    images = rng.normal(size=(9, 16)).astype(np.float32)
    share = likelihoods(unit(images), np.stack([text, *others]), 10)[:, 0].astype(np.float64)
    assert log_ratios(text, np.stack(others), images, 10) == pytest.approx(np.log(5 * share / (1 - share)), abs=1e-4)
    vectors = rng.normal(size=(9, 128)).astype(np.float32)
    ratios, share = word_log_ratios(texts, ["lake"], vectors), word_probabilities(texts, ["lake"], vectors)
    assert np.array_equal(np.argsort(ratios), np.argsort(share))


def test_the_evidence_is_the_likelihood_of_the_likeliest_share_of_rows_against_none():
    ratios = np.sort(np.random.default_rng(1).normal(-3, 3, 40))[::-1]
    found = judged(list(ratios), 40)
    capped, shares = np.exp(np.minimum(ratios, 6)), [1 / 40, 2 / 40, 4 / 40, 8 / 40, 16 / 40, 32 / 40]
    by_share = [sum(np.log((1 - share) + share * ratio) for ratio in capped) for share in shares]
    assert found.evidence == pytest.approx(max(by_share), abs=1e-5)
    share = shares[int(np.argmax(by_share))]
    assert found.share == share
    assert found.probabilities == pytest.approx(share * capped / (share * capped + 1 - share), abs=1e-5)


def test_one_good_row_is_present_among_twenty_and_chance_among_five_thousand():
    others = [-3.0] * 60
    assert judged([5.5, *others[:19]], 20).verdict == "present"
    assert judged([5.5, *others], 200).verdict == "unclear"
    assert judged([5.5, *others], 5000).verdict == "absent"
    assert judged([5.5, *others], 20).probabilities[0] > 0.9 > 0.1 > judged([5.5, *others], 5000).probabilities[0]
    assert judged([5.5] * 40 + others, 5000).verdict == "present"


def test_nothing_like_the_words_is_absent_however_many_rows_there_are():
    for searched in (1, 2, 3, 20, 200, 1_000_000):
        assert judged([-4.0] * min(searched, 60), searched).verdict == "absent"
    for searched in (1, 2, 3):
        assert judged([6.0] * searched, searched).verdict == "present"


def test_rows_beyond_those_judged_change_no_verdict():
    ratios = list(np.linspace(4, -5, 300))
    assert judged(ratios[:JUDGED], 300).evidence == judged(ratios, 300).evidence


def test_rows_unlike_the_training_images_count_neither_way():
    for ratio in (6.0, -6.0):
        found = judged([ratio] * 20, 20, unlike=20)
        assert (found.evidence, found.verdict) == (0.0, "unclear")
        assert np.isnan(found.probabilities).all()
    assert judged([0.0, *[-4.0] * 99], 100, unlike=1).verdict == "absent"
    assert judged([*[0.0] * 9, *[-4.0] * 91], 100, unlike=9).verdict == "unclear"


def test_a_damaged_vector_is_no_evidence():
    assert judged([np.nan, -4.0, -4.0], 3).verdict == "absent"


def test_the_statistics_belong_to_the_weights_they_ship_with(texts):
    statistics = find_statistics(texts.weights_sha256)
    assert find_statistics("0" * 64) is None
    assert find_statistics(None) is None
    near, far = statistics.mean, statistics.mean + np.float32(10) * np.linalg.norm(statistics.mean)
    assert statistics.unlike(np.stack([near, far])).tolist() == [False, True]
    assert statistics.whitening.shape == (192, 192)
    assert 10 < statistics.limit < 20
