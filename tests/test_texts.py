from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fakes import write_checkpoint
from rs_embed import (
    CheckpointError,
    EmbeddingFailure,
    ModelError,
    OutputSpec,
    PointBuffer,
    ProviderError,
    SpecError,
    TemporalSpec,
    embed_text,
    get_embeddings_batch,
    list_samples,
    zero_shot,
)
from rs_embed.cli.main import main
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import find_weights
from rs_embed.embedders.text import RS_TEMPLATES, load_text_embedder
from rs_embed.search.query import background_words, query_vector, text_query
from test_clip import oracle

BUNDLED = "clip_eurosat_s2rgb"


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


@pytest.fixture(scope="session")
def with_tokenizer(tmp_path_factory) -> Path:
    """The small checkpoint with CLIP's vocabulary beside it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("texts"))
    tokenizer = Tokenizer.from_open_clip_merges()
    assert tokenizer is not None
    tokenizer.rules.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def samples():
    """The sample places in the bundled model's space of texts."""
    found = list_samples()
    return get_embeddings_batch(
        BUNDLED,
        spatials=[PointBuffer(s.lon, s.lat, s.buffer_m) for s in found],
        temporal=[TemporalSpec.range(s.start, s.end) for s in found],
        output=OutputSpec.pooled("projected"),
        backend="sample",
    )


# --- embed_text --------------------------------------------------------------------------------------


def test_a_text_as_it_is_equals_open_clips(open_clip, with_tokenizer):
    from fakes import SMALL

    texts = ["river", "Houses &amp; gardens", "a café by the sea"]
    model = oracle(open_clip, SMALL)
    with torch.inference_mode():
        expected = model.encode_text(open_clip.tokenize(texts)).numpy()
    found = embed_text("remoteclip_s2rgb", texts, template=None, checkpoint=with_tokenizer)
    assert found.shape == (3, 32)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_remote_sensing_template_is_the_mean_of_eight_unit_vectors(open_clip, with_tokenizer):
    from fakes import SMALL

    model = oracle(open_clip, SMALL)
    assert len(RS_TEMPLATES) == 8
    with torch.inference_mode():
        each = model.encode_text(open_clip.tokenize([t.format("river") for t in RS_TEMPLATES])).numpy()
    [found] = embed_text("remoteclip_s2rgb", ["river"], checkpoint=with_tokenizer)
    np.testing.assert_allclose(found, unit(unit(each).mean(axis=0)), atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_a_template_of_ones_own(with_tokenizer):
    options = {"checkpoint": with_tokenizer}
    own = embed_text("remoteclip_s2rgb", "river", template="the {} at dawn", **options)
    plain = embed_text("remoteclip_s2rgb", ["the river at dawn"], template=None, **options)
    np.testing.assert_allclose(own, unit(plain), atol=1e-6)
    np.testing.assert_allclose(
        embed_text("remoteclip_s2rgb", "{x} river", template="a {}", **options),
        unit(embed_text("remoteclip_s2rgb", "a {x} river", template=None, **options)),
        atol=1e-6,
    )


def test_many_texts_equal_each_alone(with_tokenizer):
    texts = [f"place number {i} by the river" for i in range(300)]
    together = embed_text("remoteclip_s2rgb", texts, template=None, checkpoint=with_tokenizer)
    alone = embed_text("remoteclip_s2rgb", texts[123], template=None, checkpoint=with_tokenizer)
    assert np.abs(together[123] - alone[0]).max() <= 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize(
    ("texts", "options", "error", "says"),
    [
        ([], {}, ModelError, "texts is empty"),
        ([""], {}, ModelError, r"texts\[0\].*''"),
        (["a", "  "], {}, ModelError, r"texts\[1\]"),
        ([3], {}, ModelError, r"texts\[0\].*3"),
        (["a"], {"template": "satellite"}, SpecError, "'satellite'"),
        (["a"], {"template": []}, SpecError, "template"),
        (["a"], {"model": "nope"}, ModelError, "unknown model 'nope'"),
        (["a"], {"checkpoint": object()}, ModelError, "path or hub repo, got a object"),
        (["a"], {"device": "gpu"}, ModelError, "'gpu'"),
    ],
)
def test_a_text_that_cannot_be_embedded_is_refused(texts, options, error, says):
    with pytest.raises(error, match=says):
        embed_text(**({"model": BUNDLED, "texts": texts} | options))


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "mixed")
    shutil.copy(find_weights("package:clip_eurosat").parent / "tokenizer.json", folder)
    with pytest.raises(CheckpointError, match=r"vocabulary of 49408, and its tokenizer one of \d+.*tokenizer\.json"):
        embed_text("remoteclip_s2rgb", "river", checkpoint=folder)


def test_words_that_the_bundled_model_does_not_know_are_a_warning(caplog):
    embed_text(BUNDLED, ["river", "an Ångström glacier"])
    assert (
        "does not know the word(s) 'an', 'ångström', 'glacier'" in caplog.text or "'ångström', 'glacier'" in caplog.text
    )
    assert "'river'" not in caplog.text


def test_a_text_that_is_too_long_is_a_warning(caplog):
    embed_text(BUNDLED, "river " * 40)
    assert "its end is cut off" in caplog.text


# --- zero_shot ---------------------------------------------------------------------------------------


def test_probabilities_are_a_softmax_of_scaled_cosines(samples):
    labels = ["forest", "river", "houses"]
    found = zero_shot(samples, labels, model=BUNDLED)
    images, texts = unit(np.stack([e.data for e in samples])), embed_text(BUNDLED, labels)
    scale = load_text_embedder(find_card(BUNDLED), checkpoint=None, device="cpu").logit_scale
    odds = np.exp(scale * images @ texts.T)
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, zero_shot(np.stack([e.data for e in samples]), labels, model=BUNDLED))


def test_synonyms_are_one_label(samples):
    water = zero_shot(samples, {"water": ["river", "lake"], "forest": ["forest"]}, model=BUNDLED)
    as_lists = zero_shot(samples, [["river", "lake"], ["forest"]], model=BUNDLED)
    np.testing.assert_array_equal(water, as_lists)
    texts = embed_text(BUNDLED, ["river", "lake", "forest"])
    prototypes = np.stack([unit(texts[:2].mean(axis=0)), texts[2]])
    cosine = unit(np.stack([e.data for e in samples])) @ prototypes.T
    np.testing.assert_array_equal(water.argmax(axis=1), cosine.argmax(axis=1))


def test_a_label_that_the_model_cannot_read_is_refused_and_a_synonym_helps(samples, caplog):
    with pytest.raises(ModelError, match=r"knows no word of the label 'glacier'.*guess.*synonym"):
        zero_shot(samples, ["river", "glacier"], model=BUNDLED)
    found = zero_shot(samples, {"river": ["river"], "ice": ["glacier", "lake"]}, model=BUNDLED)
    np.testing.assert_array_equal(found, zero_shot(samples, ["river", "lake"], model=BUNDLED))
    assert "'glacier'" in caplog.text


def test_what_texts_cannot_be_compared_with_is_refused(samples, small):
    sample = list_samples()[0]
    where = {"spatials": [PointBuffer(sample.lon, sample.lat, 600)], "backend": "sample"}
    when = {"temporal": TemporalSpec.range(sample.start, sample.end)}
    two = ["forest", "river"]
    for output, says in ((OutputSpec.pooled(), "token_mean"), (OutputSpec.grid(), "token grid")):
        with pytest.raises(ModelError, match=rf"{says}.*projected"):
            zero_shot(get_embeddings_batch(BUNDLED, **where, **when, output=output), two, model=BUNDLED)
    other = get_embeddings_batch(
        "remoteclip_s2rgb", **where, **when, output=OutputSpec.pooled("projected"), checkpoint=small
    )
    with pytest.raises(ModelError, match="made by other weights"):
        zero_shot(other, two, model=BUNDLED)
    with pytest.raises(ModelError, match="have 7 numbers and the texts of clip_eurosat_s2rgb 128"):
        zero_shot(np.ones((2, 7)), two, model=BUNDLED)
    with pytest.raises(ModelError, match=r"\(128,\)"):
        zero_shot(np.ones(128), two, model=BUNDLED)
    with pytest.raises(ModelError, match=r"embeddings\[1\] holds NaN"):
        zero_shot(np.array([[1.0] * 128, [np.nan] * 128]), two, model=BUNDLED)
    failure = EmbeddingFailure(None, ProviderError("gone"))
    with pytest.raises(ModelError, match=r"embeddings\[0\] is a failure \(gone\)"):
        zero_shot([failure, samples[0]], two, model=BUNDLED)
    with pytest.raises(ModelError, match="at least two labels"):
        zero_shot(samples, ["forest"], model=BUNDLED)


def test_one_embedding_is_a_batch_of_one(samples):
    np.testing.assert_allclose(
        zero_shot(samples[0], ["forest", "river"], model=BUNDLED)[0],
        zero_shot(samples, ["forest", "river"], model=BUNDLED)[0],
        atol=1e-6,
    )


# --- queries -----------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
BACKGROUND, TEXT, NEGATIVE = RNG.normal(size=(5, 8)), RNG.normal(size=(1, 8)), RNG.normal(size=(2, 8))
IMAGES = RNG.normal(size=(3, 8))


def test_a_query_is_the_text_minus_the_mean_of_the_background():
    found = query_vector(TEXT, background=BACKGROUND)
    np.testing.assert_allclose(found, unit(unit(TEXT)[0] - unit(BACKGROUND).mean(axis=0)), atol=1e-6)


def test_a_negative_moves_the_query_away():
    plain, moved = (
        query_vector(TEXT, background=BACKGROUND),
        query_vector(TEXT, background=BACKGROUND, negatives=NEGATIVE),
    )
    away = unit(NEGATIVE).mean(axis=0) - unit(BACKGROUND).mean(axis=0)
    assert moved @ away < plain @ away


def test_texts_and_images_mix_by_their_weight():
    words, example = query_vector(TEXT, background=BACKGROUND), query_vector(background=BACKGROUND, images=IMAGES)
    np.testing.assert_allclose(example, unit(unit(IMAGES).mean(axis=0)), atol=1e-6)
    mixed = query_vector(TEXT, background=BACKGROUND, images=IMAGES, image_weight=0.3)
    np.testing.assert_allclose(mixed, unit(0.7 * words + 0.3 * example), atol=1e-6)
    for weight, expected in ((0.0, words), (1.0, example)):
        found = query_vector(TEXT, background=BACKGROUND, images=IMAGES, image_weight=weight)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ModelError, match="a text or an image"):
        query_vector(background=BACKGROUND)


def test_the_background_leaves_out_the_querys_own_words_and_unknown_ones(caplog):
    assert len(background_words()) >= 60
    found = text_query(BUNDLED, "river", negatives="forest")
    assert caplog.text == ""  # words of the vocabulary that this model lacks are no fault of the user
    embedder = load_text_embedder(find_card(BUNDLED), checkpoint=None, device="cpu")
    known = [w for w in background_words() if not embedder.unknown_words(w)]
    assert 20 <= len(known) < len(background_words())
    kept = [w for w in known if not {"river", "forest"} & set(w.split())]
    texts = {name: embed_text(BUNDLED, words) for name, words in (("r", "river"), ("f", "forest"), ("b", kept))}
    expected = query_vector(texts["r"], background=texts["b"], negatives=texts["f"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_table_of_real_remoteclip_vectors_is_reproduced(shared):
    from benchmarks.bench_whurs19 import PROMPT, read, table, unseen_classes

    images, labels, prompts = read(shared / "remoteclip_whurs19" / "remoteclip_vit_b_32.npz")
    rows = {name: mean_ap for name, mean_ap, _ in table(images, labels, prompts)}
    assert rows["cosine, one prompt"] < 0.85
    assert rows["minus the background, one prompt"] > 0.95
    assert rows["minus the background, eight templates"] > 0.96
    assert unseen_classes(images, labels, prompts[PROMPT]) >= 0.95


# --- the command -------------------------------------------------------------------------------------

SAMPLE = list_samples()[0]
ARGUMENTS = [
    *("classify", "--model", BUNDLED, "--backend", "sample", "--buffer-m", "600", "--start", SAMPLE.start, "--end"),
    *(SAMPLE.end, "--point", str(SAMPLE.lon), str(SAMPLE.lat)),
]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_classify_ranks_labels_for_a_person_and_a_program(capsys, samples):
    code, out, _ = run(capsys, *ARGUMENTS, "--labels", "forest,river,houses")
    assert code == 0
    assert "48.2223°N" in out
    expected = dict(
        zip(
            ["forest", "river", "houses"],
            zero_shot(samples[0], ["forest", "river", "houses"], model=BUNDLED)[0],
            strict=True,
        )
    )
    best = max(expected, key=expected.__getitem__)
    assert out.splitlines()[1].split()[:2] == [best, f"{expected[best]:.1%}"]
    code, out, _ = run(capsys, *ARGUMENTS, "--labels", "forest,water=river|lake", "--json")
    [record] = json.loads(out)
    assert set(record["probabilities"]) == {"forest", "water"}
    assert record["label"] in record["probabilities"]


@pytest.mark.parametrize(
    ("labels", "code", "says"),
    [
        ("forest,,river", 2, "'' is empty or twice"),
        ("forest,forest", 2, "'forest' is empty or twice"),
        ("water=river|", 2, "water=river|"),
        ("forest", 1, "at least two labels"),
        ("forest,glacier", 1, "knows no word of the label 'glacier'"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(capsys, labels, code, says):
    found, out, err = run(capsys, *ARGUMENTS, "--labels", labels)
    assert (found, out) == (code, "")
    assert says in err


# --- the model that ships ----------------------------------------------------------------------------

FOLDER = find_weights("package:clip_eurosat").parent


def test_similar_places_are_closer_than_different_ones(samples):
    """Two places of Irish grassland of one day, and snow over Karelia."""
    vectors = unit(np.stack([e.data for e in samples]))
    ireland, ireland_too, snow = vectors[1], vectors[2], vectors[5]
    assert ireland @ ireland_too > 0.7
    assert ireland @ ireland_too > ireland @ snow + 0.3


def test_cloud_is_far_from_clear_ground(samples):
    """A place under a bright even cloud is less like itself than like its neighbour."""
    cloud = np.random.default_rng(0).normal(6000, 150, (3, 120, 120)).astype(np.float32)
    [clouded] = get_embeddings_batch(BUNDLED, input_chws=[cloud], output=OutputSpec.pooled("projected"))
    vectors = unit(np.stack([e.data for e in samples]))
    assert float((vectors[:3] @ unit(clouded.data)).max()) < float(vectors[1] @ vectors[2])


def test_the_bundled_weights_are_small_and_their_card_is_beside_them():
    sizes = [p.stat().st_size for p in FOLDER.iterdir()]
    assert sum(sizes) <= 12 * 2**20
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    for text in ("0…2750", "EuroSAT", "MIT", "ten kinds of land", "RemoteCLIP"):
        assert text in card


def test_the_cards_figures_are_those_of_the_shipped_file(shared):
    """Measured again, on the held-out chips; `training/evaluate.py` wrote them."""
    from training.evaluate import measure_shipped

    stored = json.loads((FOLDER / "metrics.json").read_text())
    found = measure_shipped(shared / "eurosat" / "eurosat_rgb.tar")
    assert found["weights_sha256"] == stored["weights_sha256"]
    assert set(found["held_out"]) == set(stored["held_out"])
    for name, value in stored["held_out"].items():
        assert found["held_out"][name] == pytest.approx(value, abs=0.004), name
    card = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    assert f"{stored['held_out']['zero_shot']:.3f}" in card


def test_the_words_that_are_trained_on_are_enough_and_the_others_are_kept_out():
    import tomllib

    captions = tomllib.loads((Path(__file__).parents[1] / "training" / "captions.toml").read_text())
    rows = captions["classes"].values()
    trained = {wording for row in rows for wording in row["train"]}
    assert len(trained) >= 60
    assert not trained & {wording for row in rows for wording in row["held_out"]}
    words = {word for wording in trained for word in wording.replace("-", " ").split()}
    for row in rows:
        for wording in row["held_out"]:
            assert set(wording.replace("-", " ").split()) <= words | {"of", "with", "and", "a", "by"}, wording


def test_other_weights_are_told_apart_from_the_bundled_ones(samples):
    changed = [replace_sha(e) for e in samples]
    with pytest.raises(ModelError, match="other weights"):
        zero_shot(changed, ["forest", "river"], model=BUNDLED)


def replace_sha(embedding):
    return replace(embedding, meta=embedding.meta | {"weights_sha256": "0" * 64})


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog):
    caplog.set_level(logging.WARNING, "rs_embed")


def test_words_find_the_right_chips_through_the_http_api(shared, tmp_path):
    """The whole path on chips held out of training; `python -m benchmarks.bench_eurosat_search` does it with 5,041."""
    from benchmarks.bench_eurosat_search import precision_at_10

    found, rows, _ = precision_at_10(tmp_path, 625, held_out_only=True)
    assert rows == 625
    assert np.mean(list(found.values())) >= 0.9
