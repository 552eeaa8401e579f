"""Search over datasets: what comes first, what filters leave, and when the answer is that nothing is there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from PIL import Image

from fakes import FakeProvider
from rs_embed import (
    EmbeddingIndex,
    ModelError,
    OutputSpec,
    PointBuffer,
    RSEmbedError,
    SpecError,
    TemporalSpec,
    export_embeddings,
    get_embedding,
    list_samples,
    open_dataset,
)
from rs_embed.cli.main import main
from rs_embed.embedders.text import RS_TEMPLATES, unit
from rs_embed.search.concepts import fit_direction
from rs_embed.search.query import query_vector, text_query
from rs_embed.search.results import NOTHING_LIKE_IT
from rs_embed.search.vectors import VectorFile
from vector_dataset import write_vectors

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """The sample's six places, nine chips each."""
    folder = tmp_path_factory.mktemp("sample") / "ds"
    for place in list_samples():
        chips = [
            PointBuffer(place.lon + x / 70_000, place.lat + y / 111_320, 200)
            for x in (-400, 0, 400)
            for y in (-400, 0, 400)
        ]
        temporal = TemporalSpec.range(place.start, place.end)
        export_embeddings(MODEL, chips, folder, temporal=temporal, backend="sample", partition_size=4)
    return folder


def projected(folder: Path) -> tuple[np.ndarray, list[str]]:
    data = open_dataset(folder)
    return unit(data.to_numpy("embedding_projected")), data.to_table(["unique_id"])["unique_id"].to_pylist()


def test_words_give_what_brute_force_gives(sample):
    found = EmbeddingIndex(sample).search("forest", k=10, every_window=True)
    vectors, ids = projected(sample)
    scores = vectors @ text_query(MODEL, "forest")
    assert [h.unique_id for h in found.hits] == [ids[i] for i in np.argsort(-scores, kind="stable")[:10]]
    assert [h.score for h in found.hits] == pytest.approx(sorted(scores, reverse=True)[:10], abs=2e-3)
    assert (found.exact, found.searched) == (True, len(ids))
    assert [h.rank for h in found.hits] == list(range(1, 11))
    assert found.hits[0].percentile > 95
    assert all(0 <= h.probability <= 1 for h in found.hits)


def test_words_that_the_model_does_not_know_are_told_in_the_answer(sample):
    index = EmbeddingIndex(sample)
    assert "does not know the word(s) 'fire' of 'forest fire'" in index.search("forest fire").notice
    assert "'smoke'" in index.search("forest", negative="smoke").notice
    glacier = index.search("glacier").notice
    assert "'glacier'" in glacier
    assert "none of the words is known, and the order means nothing" in glacier
    for words in ("forest", "river by a forest", "houses, with lake"):
        assert "know" not in (index.search(words).notice or "")


def test_a_likelihood_is_given_only_for_words_that_the_model_knows(sample):
    index = EmbeddingIndex(sample)
    farm = index.search("solar farm")
    assert farm.presence is None
    assert all(hit.probability is None for hit in farm.hits)
    assert "'farm' was searched alone" in farm.notice
    fields = index.search("farm fields")
    assert (fields.presence, fields.notice) == ("present", None)
    assert fields.hits[0].probability > 0.5
    assert "presence" in fields.to_dict()


def test_a_verdict_and_a_likelihood_do_not_depend_on_the_number_of_hits(sample):
    index = EmbeddingIndex(sample)
    for words in ("forest", "meadow", "highway"):
        one, all_of_them = index.search(words, k=1), index.search(words, k=54)
        assert (one.presence, one.hits[0]) == (all_of_them.presence, all_of_them.hits[0])


def test_imagery_unlike_all_that_the_model_was_trained_on_is_said_to_be_so(sample):
    """The last sample place lies under snow."""
    winter = EmbeddingIndex(sample).search("lake", time=TemporalSpec.range("2018-02-01", "2018-03-01"), k=9)
    unlike = [hit.unlike_training for hit in winter.hits]
    assert sum(unlike) >= 7
    assert [hit.probability is None for hit in winter.hits] == unlike
    assert winter.presence == "unclear"
    assert f"{sum(unlike)} of the best 9 places are unlike anything that {MODEL} was trained on" in winter.notice
    summer = EmbeddingIndex(sample).search("meadow", time=TemporalSpec.range("2017-06-01", "2017-07-01"))
    assert (summer.presence, summer.notice) == ("present", None)
    assert sum(hit.unlike_training for hit in summer.hits) <= 1


def test_a_normalised_dataset_is_as_unlike_the_training_images(tmp_path):
    bright = FakeProvider(dn=np.random.default_rng(0).integers(4000, 9000, (3, 64, 64)).astype(np.float32))
    found = []
    for normalise in (False, True):
        folder = tmp_path / str(normalise)
        export_embeddings(
            MODEL, [PointBuffer(13.72, 48.22, 320)], folder, temporal=JUNE, backend=bright, normalise=normalise
        )
        found.append([hit.unlike_training for hit in EmbeddingIndex(folder).places().hits])
    assert found == [[True], [True]]


def test_places_tell_how_well_each_answers_a_question(sample):
    index = EmbeddingIndex(sample)
    vectors, ids = projected(sample)
    scores = vectors @ text_query(MODEL, "forest")
    listed = index.places(text="forest", limit=100)
    assert len(listed.hits) == 54
    expected = {unique: 100 * (scores < scores[i]).mean() for i, unique in enumerate(ids)}
    for hit in listed.hits:
        assert hit.percentile == pytest.approx(expected[hit.unique_id], abs=2)  # float16 may swap neighbours
    assert {hit.percentile for hit in index.places(limit=100).hits} == {0.0}
    winter = index.places(text="forest", time=TemporalSpec.range("2017-12-01", "2018-03-01"), limit=100)
    assert 0 < winter.searched < 54
    assert {h.unique_id: h.percentile for h in listed.hits}.items() >= {
        h.unique_id: h.percentile for h in winter.hits
    }.items()


def test_an_index_that_is_built_again_holds_what_the_dataset_holds_now(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors, [f"r{i}" for i in range(20)])
    index = EmbeddingIndex(folder)
    next((folder / "embeddings").iterdir()).unlink()
    write_vectors(folder, vectors[::-1], [f"r{i}" for i in range(20)])  # as many rows: `add` cannot see it
    assert (index.add(), index.search(vector=vectors[0], k=1).hits[0].id) == (0, "r0")
    seen: list[tuple[int, int]] = []
    assert index.build(lambda done, total: seen.append((done, total))) == 20
    assert seen == [(1, 1)]
    assert index.search(vector=vectors[0], k=1).hits[0].id == "r19"


def test_searches_beside_an_index_that_grows_get_whole_answers(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(15, 600, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors[0])
    index, stop, wrong = EmbeddingIndex(folder), threading.Event(), []

    def searcher() -> None:
        while not stop.is_set():
            try:
                found = index.search(vector=vectors[0, 5], k=5, bbox=(0, 40, 11, 50))
                assert found.hits[0].id == "v0-5"
            except Exception as error:  # noqa: BLE001  (told below)
                wrong.append(error)

    threads = [threading.Thread(target=searcher) for _ in range(2)]
    for thread in threads:
        thread.start()
    for part in vectors[1:]:
        write_vectors(folder, part)
        assert index.add() == 600
    index.build()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(index) == 9_000


def test_an_index_sees_what_another_process_added(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 10, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors[0])
    index, other = EmbeddingIndex(folder), EmbeddingIndex(folder)
    write_vectors(folder, vectors[1])
    assert other.add() == 10
    index.refresh()
    assert len(index) == 20
    assert index.search(vector=vectors[1, 3], k=1).hits[0].id == "v1-3"
    other.build()
    index.refresh()
    assert len(index) == 20


@pytest.mark.parametrize("name", ["index.json", "vectors.f16", "signs.u1", "mean.npy", "rows-000000000.parquet"])
@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_damaged_index_is_built_again(tmp_path, name, damage, caplog):
    vectors = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors)
    EmbeddingIndex(folder)
    file = folder / ".rs-embed" / "index" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) if damage == "short" else file.unlink()
    index = EmbeddingIndex(folder)
    assert len(index) == 30
    assert index.search(vector=vectors[7], k=1).hits[0].id == "v0-7"
    assert index._rows.file.nearest(unit(vectors[7]), 1, centred=False, exact=False).positions.tolist() == [7]
    assert ("is damaged" in caplog.text) == ((name, damage) != ("index.json", "gone"))  # that one is none at all


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    folder = write_vectors(tmp_path / "ds", np.eye(8, 16, dtype=np.float32))
    (folder / ".rs-embed" / "locks").rmdir() if (folder / ".rs-embed" / "locks").exists() else None
    (folder / ".rs-embed" / "locks").write_text("in the way")
    with pytest.raises(RSEmbedError, match="cannot be written to"):
        EmbeddingIndex(folder)


def test_vectors_of_any_length_are_found_by_sign_bits(tmp_path):
    vectors = unit(np.random.default_rng(0).normal(size=(500, 50)).astype(np.float32))
    file = VectorFile(tmp_path / "index").append(vectors[:300], {}).append(vectors[300:], {})
    assert file.nearest(vectors[420], 1, centred=False, exact=False).positions.tolist() == [420]


def test_a_dataset_without_rows_and_filters_that_leave_none_say_so(tmp_path, sample):
    empty = EmbeddingIndex(write_vectors(tmp_path / "ds", np.empty((0, 64), np.float32)))
    assert (empty.search("forest").hits, empty.search(id="x").notice) == ((), "this dataset has no rows yet")
    assert empty.places(text="forest").hits == ()
    found = EmbeddingIndex(sample).search("forest", bbox=(100, 0, 101, 1))
    assert (found.hits, found.searched) == ((), 0)
    assert "no row is left by these filters: the dataset lies in" in found.notice


def test_an_example_finds_other_places_not_its_own_other_time_ranges(tmp_path):
    base = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    for _ in range(3):
        write_vectors(tmp_path / "ds", base, [f"p{i}" for i in range(6)])
    index = EmbeddingIndex(tmp_path / "ds")
    assert "p2" not in {h.id for h in index.search(id="p2", k=6).hits}
    assert [h.id for h in index.search(id="0-p2", k=2, every_window=True).hits] == ["p2", "p2"]


@pytest.mark.parametrize(
    "terms",
    [
        {"concept": "x", "negative": "forest"},
        {"text": "forest", "background": np.ones((2, 128))},
        {"vector": np.ones(128), "background": np.ones((2, 128)), "negative": "forest"},
        {"text": "forest", "k": 2.5},
    ],
)
def test_terms_that_do_not_go_together_are_refused_not_ignored(sample, terms):
    with pytest.raises(SpecError):
        EmbeddingIndex(sample).search(**terms)


@pytest.mark.parametrize("facts", [b"\xff\xfe", b"null", b'{"name": 1}', b"[]"])
def test_a_concept_that_is_none_is_told(sample, facts):
    (sample / "concepts").mkdir(exist_ok=True)
    file = sample / "concepts" / "odd.json"
    file.write_bytes(facts)
    with pytest.raises(RSEmbedError, match="is no concept"):
        EmbeddingIndex(sample).search(concept="odd")
    for direction, says in (
        ([], "is no concept"),
        (["a"], "is no concept"),
        ([1.0], "has shape"),
        ([float("nan")] * 128, "NaN"),
    ):
        concept = {"name": "odd", "model": MODEL, "positives": ["a"], "negatives": ["b"], "direction": direction}
        file.write_text(json.dumps(concept | {"weights_sha256": EmbeddingIndex(sample).request.weights_sha256}))
        with pytest.raises(RSEmbedError, match=says):
            EmbeddingIndex(sample).search(concept="odd")
    file.unlink()
    with pytest.raises(SpecError, match="letters, digits"):
        EmbeddingIndex(sample).search(concept="𒀀" * 63)


def test_what_is_not_wanted_goes_down(sample):
    index = EmbeddingIndex(sample)
    plain = [h.unique_id for h in index.search("forest", k=54, every_window=True).hits]
    without = [h.unique_id for h in index.search("forest", negative="farm fields", k=54, every_window=True).hits]
    assert sorted(plain) == sorted(without)
    assert plain != without


def test_an_example_finds_its_like_and_not_itself(sample):
    index = EmbeddingIndex(sample)
    vectors, ids = projected(sample)
    found = index.search(id=ids[7], k=5, every_window=True)
    order = [ids[i] for i in np.argsort(-(vectors @ vectors[7])) if ids[i] != ids[7]]
    assert [h.unique_id for h in found.hits] == order[:5]
    assert all(h.probability is None for h in found.hits)
    place, row = list_samples()[0], index.search(id=ids[7], k=1).hits[0]
    made = get_embedding(
        MODEL,
        spatial=PointBuffer(row.lon, row.lat, 200),
        temporal=TemporalSpec.range(row.start, row.end),
        output=OutputSpec.pooled("projected"),
        backend="sample",
    )
    assert index.search(vector=made, k=1).hits[0].unique_id == row.unique_id
    pixels = np.full((3, 40, 40), 900, np.uint16)
    assert len(index.search(image=pixels, k=3).hits) == 3
    assert len(index.search("forest", id=ids[0], k=3).hits) == 3
    assert place


def test_filters_come_before_the_search(sample):
    index, place = EmbeddingIndex(sample), list_samples()[0]
    box = (place.lon - 0.02, place.lat - 0.02, place.lon + 0.02, place.lat + 0.02)
    found = index.search("forest", bbox=box, k=50, every_window=True)
    assert (found.searched, len(found.hits)) == (9, 9)
    assert all(box[0] < h.lon < box[2] for h in found.hits)
    winter = index.search("forest", time=TemporalSpec.range("2017-12-01", "2018-03-01"), k=50, every_window=True)
    assert {h.start for h in winter.hits} <= {"2017-12-01", "2018-02-01"}
    assert winter.searched == len(winter.hits)
    nowhere = index.search("forest", bbox=(100, 0, 101, 1))
    assert (nowhere.hits, nowhere.searched) == ((), 0)


def test_rows_that_were_added_are_taken_in_once(tmp_path):
    places = [PointBuffer(15 + i / 10, 48, 320) for i in range(12)]
    export_embeddings(MODEL, places[:8], tmp_path / "ds", temporal=JUNE, backend=FakeProvider(), partition_size=4)
    index = EmbeddingIndex(tmp_path / "ds")
    assert (len(index), index.add()) == (8, 0)
    export_embeddings(MODEL, places, tmp_path / "ds", temporal=JUNE, backend=FakeProvider(), partition_size=4)
    assert index.add() == 4
    again = EmbeddingIndex(tmp_path / "ds")
    assert len(again) == 12
    vectors, ids = projected(tmp_path / "ds")
    for i, unique in enumerate(ids):
        np.testing.assert_allclose(again._rows.file.vectors[again.position_of(unique)], vectors[i], atol=1e-3)


def test_a_part_that_was_written_again_adds_only_what_is_new(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors[:15], [f"r{i}" for i in range(15)])
    assert len(EmbeddingIndex(folder)) == 15
    next((folder / "embeddings").iterdir()).unlink()
    write_vectors(folder, vectors, [f"r{i}" for i in range(20)])
    index = EmbeddingIndex(folder)
    assert len(index) == 20
    assert index.search(vector=vectors[17], k=1).hits[0].id == "r17"


def test_a_place_is_there_once_unless_every_time_range_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(5, 64)).astype(np.float32)
    for _ in range(3):
        write_vectors(tmp_path / "ds", base + 0.01 * rng.normal(size=base.shape), [f"p{i}" for i in range(5)])
    index = EmbeddingIndex(tmp_path / "ds")
    assert len(index) == 15
    assert index.search(vector=base[2], k=5).hits[0].id == "p2"
    assert len({h.id for h in index.search(vector=base[2], k=5).hits}) == 5
    assert [h.id for h in index.search(vector=base[2], k=3, every_window=True).hits] == ["p2"] * 3


def test_what_cannot_be_asked_is_refused(sample, tmp_path):
    index = EmbeddingIndex(sample)
    place = list_samples()[0]
    mean = get_embedding(
        MODEL,
        spatial=PointBuffer(place.lon, place.lat, 300),
        temporal=TemporalSpec.range(place.start, place.end),
        backend="sample",
    )
    for how, error, says in (
        ({}, ModelError, "nothing was asked"),
        ({"text": " "}, ModelError, "must be a non-empty text"),
        ({"text": "x", "k": 0}, SpecError, "from 1 to 1000"),
        ({"id": "nobody"}, SpecError, "has no row 'nobody'"),
        ({"vector": mean}, ModelError, "is a token_mean"),
        ({"vector": np.zeros(3)}, ModelError, "has shape"),
        ({"vector": np.full(128, np.nan)}, ModelError, "NaN or infinity"),
        ({"vector": np.zeros(128), "id": "0"}, SpecError, "one kind of example is enough"),
        ({"text": "x", "bbox": (2, 0, 1, 1)}, SpecError, "minlon"),
    ):
        with pytest.raises(error, match=says):
            index.search(**how)
    with pytest.raises(RSEmbedError, match="is no dataset"):
        EmbeddingIndex(tmp_path)


def test_an_index_of_other_weights_is_refused(tmp_path):
    folder = write_vectors(tmp_path / "ds", np.eye(8, 64, dtype=np.float32))
    EmbeddingIndex(folder)
    notes = folder / ".rs-embed" / "index" / "index.json"
    notes.write_text(notes.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(RSEmbedError, match="is of other weights"):
        EmbeddingIndex(folder)


def test_a_process_that_died_while_adding_left_nothing_that_counts(tmp_path):
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(100, 64)).astype(np.float32))
    file = VectorFile(tmp_path / "index")
    file = file.append(vectors[:60], {})
    with (tmp_path / "index" / "vectors.f16").open("ab") as stream:
        stream.write(b"half of what came next")
    file = VectorFile(tmp_path / "index")
    file = file.append(vectors[60:], {})
    found = VectorFile(tmp_path / "index").nearest(vectors[80], 1, centred=False)
    assert found.positions.tolist() == [80]
    assert len(file) == 100


@pytest.mark.parametrize("n", [1, 7, 5000])
def test_exact_search_is_brute_force(tmp_path, n):
    rng = np.random.default_rng(n)
    vectors = unit(rng.normal(size=(n, 64)).astype(np.float32))
    file = VectorFile(tmp_path / "index")
    file = file.append(vectors, {})
    query = unit(rng.normal(size=64).astype(np.float32))
    stored = vectors.astype(np.float16).astype(np.float32) @ query
    found = file.nearest(query, min(10, n), centred=False, exact=True)
    assert found.positions.tolist() == np.argsort(-stored)[:10].tolist()
    candidates = np.arange(0, n, 2)
    assert set(file.nearest(query, 5, candidates=candidates, centred=False).positions) <= set(candidates.tolist())


def test_sign_bits_find_what_exact_search_finds(tmp_path):
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(100, 256)).astype(np.float32))
    vectors = unit(
        centres[rng.integers(0, 100, 20_000)] + 0.6 * unit(rng.normal(size=(20_000, 256)).astype(np.float32))
    )
    file = VectorFile(tmp_path / "index")
    file = file.append(vectors, {})
    hits = 0
    for i in range(50):
        exact = file.nearest(vectors[i], 10, centred=False, exact=True)
        fast = file.nearest(vectors[i], 10, centred=False, exact=False)
        assert not fast.exact
        hits += len(set(exact.positions) & set(fast.positions))
        assert abs(exact.percentiles[0] - fast.percentiles[0]) < 1
    assert hits / 500 >= 0.98


# --- real RemoteCLIP vectors ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whurs19(shared):
    with np.load(
        shared / "remoteclip_whurs19" / "remoteclip_vit_b_32.npz", allow_pickle=True
    ) as data:  # names are stored as objects
        return {name: data[name] for name in data.files} | {"prompt_names": data["prompt_names"].astype(str)}


def average_precision(ranked: np.ndarray, positives: int) -> float:
    found = np.cumsum(ranked)
    return float((found / np.arange(1, len(ranked) + 1))[ranked].sum() / positives)


def test_real_vectors_are_ranked_by_words_minus_a_background(whurs19, tmp_path):
    labels = whurs19["class_index"]
    folder = write_vectors(tmp_path / "ds", whurs19["image_embeddings"], [str(i) for i in range(len(labels))])
    index, texts = EmbeddingIndex(folder), unit(whurs19["text_embeddings"].mean(axis=0))
    scores = []
    for c in range(19):
        others = np.delete(texts, c, axis=0)
        found = index.search(vector=texts[c], background=others, k=1000)
        ranked = np.array([labels[int(hit.id)] == c for hit in found.hits])
        scores.append(average_precision(ranked, int((labels == c).sum())))
    assert np.mean(scores) >= 0.95


def test_text_queries_on_real_vectors_are_found_by_sign_bits(whurs19, tmp_path):
    vectors, texts = unit(whurs19["image_embeddings"]), unit(whurs19["text_embeddings"].mean(axis=0))
    file = VectorFile(tmp_path / "index")
    file = file.append(vectors, {})
    common, hits = texts.mean(axis=0), 0
    for text in texts:
        query = unit(text - common)
        exact, fast = (file.nearest(query, 10, centred=True, exact=e, rescored=200) for e in (True, False))
        hits += len(set(exact.positions) & set(fast.positions))
    assert hits / 190 >= 0.98


def test_a_class_that_was_removed_is_said_to_be_missing(whurs19, tmp_path):
    """With the library's templates, and only the 18 other classes as the background; its own vocabulary is larger."""
    vectors, labels = whurs19["image_embeddings"], whurs19["class_index"]
    library = [template.removesuffix(" {}").replace(" ", "_") for template in RS_TEMPLATES]
    chosen = np.isin(whurs19["prompt_names"], library)
    assert chosen.sum() == len(library)
    texts = unit(unit(whurs19["text_embeddings"][chosen]).mean(axis=0))
    whole = EmbeddingIndex(write_vectors(tmp_path / "whole", vectors))
    said = []
    for c in range(19):
        question = {"vector": texts[c], "background": np.delete(texts, c, axis=0), "logit_scale": 100.0}
        found = whole.search(**question)
        assert (found.notice, found.presence) == (None, "present")
        assert all(hit.probability > 0.5 for hit in found.hits[:5])
        without = EmbeddingIndex(write_vectors(tmp_path / f"without-{c}", vectors[labels != c]))
        missing = without.search(**question)
        assert missing.presence == "absent"
        said.append((missing.notice or "").startswith(NOTHING_LIKE_IT))
    assert all(said)


# --- concepts ------------------------------------------------------------------------------------------


def test_a_concept_minimises_the_logistic_loss_around_what_was_asked():
    """Oracle: the same loss, by torch's optimiser."""
    rng = np.random.default_rng(0)
    positives, negatives = (unit(rng.normal(size=(n, 16)).astype(np.float32)) for n in (4, 6))
    asked, mean = unit(rng.normal(size=16).astype(np.float32)), rng.normal(size=16).astype(np.float32) / 10
    x = torch.from_numpy(np.concatenate([positives, negatives]) - mean).double()
    y = torch.tensor([1.0] * 4 + [0.0] * 6, dtype=torch.float64)
    start = 10 * torch.from_numpy(asked).double()
    w, b = start.clone().requires_grad_(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        each = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y, reduction="none")
        found = each[:4].mean() + each[4:].mean() + 0.05 * (w - start).square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    expected = w.detach() / w.detach().norm()
    np.testing.assert_allclose(fit_direction(asked, positives, negatives, mean), expected, atol=1e-4)


def test_marks_on_real_vectors_rank_better_than_the_words_alone(whurs19, tmp_path):
    labels = whurs19["class_index"]
    folder = write_vectors(tmp_path / "ds", whurs19["image_embeddings"], [str(i) for i in range(len(labels))])
    index, texts = EmbeddingIndex(folder), unit(whurs19["text_embeddings"][0])
    before, after = [], []
    for c in range(19):
        asked = query_vector(texts[[c]], background=np.delete(texts, c, axis=0))
        ranked = [int(h.id) for h in index.search(vector=asked, background=texts * 0 + 1e-9, k=1000).hits]
        hits = [i for i in ranked[:40] if labels[i] == c][:5]
        misses = [i for i in ranked[:40] if labels[i] != c][:5]
        if not (hits and misses):
            continue
        vectors = unit(whurs19["image_embeddings"])
        head = fit_direction(asked, vectors[hits], vectors[misses], vectors.mean(axis=0))
        left = np.setdiff1d(np.arange(len(labels)), hits + misses)
        for query, found in ((asked, before), (head, after)):
            order = left[np.argsort(-(vectors[left] @ query))]
            found.append(average_precision(labels[order] == c, int((labels[left] == c).sum())))
    assert len(before) >= 5
    assert np.mean(after) > np.mean(before) + 0.01


def test_a_concept_is_trained_saved_and_searched(sample, capsys):
    index = EmbeddingIndex(sample)
    hits = index.search("forest", k=54, every_window=True).hits
    positives, negatives = [h.unique_id for h in hits[:3]], [h.unique_id for h in hits[-3:]]
    concept = index.train(positives, negatives, name="my woods", text="forest")
    assert (concept.positives, concept.negatives, concept.text) == (tuple(positives), tuple(negatives), ("forest",))
    found = EmbeddingIndex(sample).search(concept="my woods", k=54, every_window=True)
    assert [h.unique_id for h in found.hits][:3] != [h.unique_id for h in found.hits][-3:]
    vectors, ids = projected(sample)
    best = [ids[i] for i in np.argsort(-(vectors @ np.array(concept.direction, np.float32)))]
    assert [h.unique_id for h in found.hits[:10]] == best[:10]
    plain = index.search("forest", id=positives, unlike=negatives, k=54, every_window=True)
    assert not {h.unique_id for h in plain.hits} & {*positives, *negatives}
    code, out, _ = run(capsys, "search", str(sample), "--concept", "my woods", "--k", "3")
    assert (code, len(out.splitlines())) == (0, 4)
    marks = ["--like", positives[0], "--unlike", negatives[0], "--save", "by_hand"]
    assert run(capsys, "search", str(sample), *marks)[0] == 0
    assert EmbeddingIndex(sample).concepts.names() == ["by_hand", "my woods"]
    for path in (sample / "concepts").glob("*.json"):
        path.unlink()


def test_a_concept_that_cannot_be_is_refused(sample):
    index = EmbeddingIndex(sample)
    a, b = (h.unique_id for h in index.search("forest", k=2).hits)
    for arguments, says in (
        ({"positives": a, "negatives": b, "name": "../secret"}, "letters, digits"),
        ({"positives": a, "negatives": [], "name": "x"}, "rows on both sides"),
        ({"positives": a, "negatives": [a, b], "name": "x"}, "positive and negative"),
        ({"positives": "nobody", "negatives": b, "name": "x"}, "has no row 'nobody'"),
    ):
        with pytest.raises(SpecError, match=says):
            index.train(**arguments)
    for arguments, says in (
        ({"concept": "none"}, "there is no concept 'none'"),
        ({"concept": "../../x"}, "letters, digits"),
        ({"concept": "x", "text": "forest"}, "stands for itself"),
        ({"unlike": a}, "nothing was asked"),
    ):
        with pytest.raises((SpecError, ModelError), match=says):
            index.search(**arguments)
    (sample / "concepts").mkdir(exist_ok=True)
    (sample / "concepts" / "broken.json").write_text("[]")
    with pytest.raises(RSEmbedError, match="is no concept"):
        index.search(concept="broken")
    (sample / "concepts" / "broken.json").unlink()


# --- what an answer tells ------------------------------------------------------------------------------


def test_an_answer_that_is_not_exact_tells_its_recall(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_embed.search.vectors.EXACT_UP_TO", 1000)
    monkeypatch.setattr("rs_embed.search.store.EXACT_UP_TO", 1000)
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(50, 64)).astype(np.float32))
    vectors = unit(centres[rng.integers(0, 50, 4000)] + 0.6 * unit(rng.normal(size=(4000, 64)).astype(np.float32)))
    index = EmbeddingIndex(write_vectors(tmp_path / "ds", vectors))
    approximate, exact = (index.search(id="v0-7", k=5, bbox=(2, 40, 12, 50), exact=e) for e in (None, True))
    whole = index.search(vector=vectors[3], k=5)
    assert (whole.exact, approximate.exact, exact.exact, exact.recall) == (False, False, True, None)
    assert len({h.id for h in approximate.hits} & {h.id for h in exact.hits}) >= 4
    assert all(h.lon > 2 - 0.01 for h in approximate.hits)
    assert 0.8 < whole.recall <= 1
    assert whole.to_dict()["recall"] == whole.recall
    noise = VectorFile(tmp_path / "noise")
    noise = noise.append(unit(rng.normal(size=(8000, 64)).astype(np.float32)), {})
    assert noise.recall() < whole.recall  # isotropic noise is what sign bits cannot do


def test_footprints_are_the_places_own_squares(sample):
    hit = EmbeddingIndex(sample).search("forest", k=1).hits[0]
    (row,) = open_dataset(sample).filter(where=pc.field("unique_id") == hit.unique_id).to_table().to_pylist()
    outline = shapely.from_wkb(row["geometry"])
    assert shapely.Polygon(hit.footprint).equals(outline)
    (north_west, north_east, south_east, south_west) = hit.footprint
    assert north_west[1] > south_west[1]
    assert north_east[0] > north_west[0]
    assert south_east[0] > south_west[0]
    feature = EmbeddingIndex(sample).search("forest", k=1).to_geojson()["features"][0]
    ring = shapely.geometry.shape(feature["geometry"])
    assert ring.equals(outline)
    assert ring.exterior.is_ccw  # as RFC 7946 has it


@pytest.mark.parametrize("columns", [None, ["unique_id"]])
def test_an_index_of_an_earlier_version_is_made_again(tmp_path, columns):
    folder = write_vectors(tmp_path / "ds", unit(np.eye(8, 16, dtype=np.float32)))
    EmbeddingIndex(folder)
    facts = folder / ".rs-embed" / "index" / "index.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"columns": columns}))
    for rows in facts.parent.glob("rows-*.parquet"):
        pq.write_table(pq.read_table(rows).drop_columns(["geometry", "part"]), rows)
    index = EmbeddingIndex(folder)
    assert len(index) == 8
    assert len(index.search(vector=np.eye(16, dtype=np.float32)[0], k=8).hits) == 8


def test_thumbnails_come_from_the_part_that_holds_them(sample):
    index = EmbeddingIndex(sample)
    ids = [h.unique_id for h in index.search("forest", k=6).hits]
    stored = dict(open_dataset(sample).thumbnails())
    assert index.thumbnails(ids) == {i: stored[i] for i in ids}


# --- command line --------------------------------------------------------------------------------------


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out = capsys.readouterr()
    return int(stopped.value.code or 0), out.out, out.err


def test_the_command_finds_writes_and_draws(sample, tmp_path, capsys):
    _, out_of_index, _ = run(capsys, "index", str(sample), "--json")
    code, out, _ = run(capsys, "index", str(sample))
    assert (code, "54 row(s)" in out) == (0, True)
    hits, sheet = tmp_path / "hits.geojson", tmp_path / "hits.png"
    code, out, err = run(capsys, "search", str(sample), "forest", "--k", "7", "--out", str(hits), "--plot", str(sheet))
    assert code == 0
    assert "54 row(s) searched" in out
    assert "likely" in out
    document = json.loads(hits.read_text())
    assert len(document["features"]) == 7
    assert document["features"][0]["properties"]["rank"] == 1
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1000
    code, out, _ = run(capsys, "search", str(sample), "--like", document["features"][0]["id"], "--json")
    assert code == 0
    assert len(json.loads(out)["results"]) == 20
    assert run(capsys, "search", str(sample), "forest", "--out", str(tmp_path / "new" / "hits.json"))[0] == 0
    layer = tmp_path / "hits.gpkg"
    assert run(capsys, "search", str(sample), "forest", "--k", "7", "--out", str(layer))[0] == 0
    frame = geopandas.read_file(layer, layer="hits")
    assert list(frame["unique_id"]) == [feature["id"] for feature in document["features"]]
    assert frame.crs.to_epsg() == 4326
    code, _, err = run(capsys, "search", str(sample), "forest", "--out", str(tmp_path / "hits.txt"))
    assert (code, "must end in one of .geojson" in err) == (2, True)
    code, _, err = run(capsys, "search", str(sample), "forest", "--plot", str(tmp_path / "hits.bmpx"))
    assert (code, "must end in one of .png" in err) == (2, True)
    assert run(capsys, "index", str(sample), "--rebuild", "--json")[:2] == (0, out_of_index)
    code, _, err = run(capsys, "search", str(sample), "--like", "../../etc/passwd")
    assert code == 2
    assert "has no row" in err
    assert run(capsys, "search", str(sample), "forest", "--bbox", "100", "0", "101", "1")[0] == 1
