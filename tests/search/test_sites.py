"""What is steered: the band by default, the blocks asked for, or single ones to search."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from calibrate.common.settings import Settings
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus
from calibrate.models.model import preserving_model_state
from calibrate.search.sites import as_first_chosen, choose_sites, most_blocks, steered_band
from calibrate.search.storage import StudyStore
from calibrate.texts.extraction import concept_vectors


@pytest.fixture
def sites_of(sequences):
    """The names of the sites chosen by settings, and how many blocks were ranked, on six blocks."""
    loaded = tiny.loaded("llama", layers=6)
    splits = tiny.concept().split()
    corpus = Corpus(tuple(sequences), self_sampled=True)

    def names(most=2, **options):
        settings = Settings(**options)
        with preserving_model_state(loaded):
            vectors = concept_vectors(loaded, splits["vector"], settings)
            ranks, sites = choose_sites(loaded, corpus, splits["probe"], vectors, most, settings)
        return [site.name for site in sites], len(ranks)

    return names


def test_the_band_is_most_of_the_depth_and_never_empty():
    assert steered_band(30) == tuple(range(8, 27))
    assert steered_band(18) == tuple(range(5, 17))
    for n in range(1, 200):
        band = steered_band(n)
        assert band == tuple(range(band[0], band[-1] + 1))
        assert 0 <= band[0] <= band[-1] < n


def test_by_default_the_band_is_the_only_site_and_nothing_is_ranked(sites_of):
    assert sites_of() == (["blocks 2-5"], 0)
    assert sites_of(positions="auto") == (["blocks 2-5", "blocks 2-5, last position"], 0)


@pytest.mark.parametrize(
    ("layer", "name"), [(3, "block 3"), ("1-3", "blocks 1-3"), ((0, 4), "blocks 0, 4")]
)
def test_blocks_that_are_asked_for_are_one_site(sites_of, layer, name):
    assert sites_of(layer=layer) == ([name], 0)


def test_a_search_ranks_all_blocks_and_tries_single_ones(sites_of):
    names, ranked = sites_of(layer="search")
    assert ranked == 6
    assert len(names) == 2
    assert all(name.startswith("block ") for name in names)
    assert sites_of(layer="search", most=1) == (names[:1], 6)


def test_only_a_search_has_blocks_to_choose_from():
    assert [most_blocks(Settings(layer=layer), 30) for layer in ("auto", 3, "8-26")] == [1, 1, 1]
    assert most_blocks(Settings(layer="search"), 30) == 2
    assert most_blocks(Settings(layer="search"), 1) == 1


def test_every_worker_searches_the_blocks_that_the_first_one_chose(tmp_path):
    vectors = [replace(tiny.site(torch.ones(4), 0).vectors[0], layer=layer) for layer in range(4)]
    store = StudyStore("joy", "f", tmp_path)

    def names(layers, where):
        sites = [Site((vectors[layer],), "last") for layer in layers]
        return [site.name for site in as_first_chosen(sites, vectors, where)]

    assert (
        names([2, 1], store)
        == names([3], store)
        == ["block 2, last position", "block 1, last position"]
    )
    assert names([3], StudyStore("joy", "f")) == ["block 3, last position"]
