"""Which sites the study tries: a band of blocks, the blocks asked for, or single ones searched.

A band steered with one strength keeps up with the best of the single blocks measured, which no
ranking names beforehand (docs/bands.md, docs/study.md): one site, one pilot, nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from calibrate.common.record import BlockRank
from calibrate.common.settings import Settings
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus
from calibrate.models.model import LoadedModel
from calibrate.search.block_ranking import MAX_BLOCKS, carried_blocks, rank_blocks
from calibrate.search.storage import StudyStore
from calibrate.search.workers import agreed
from calibrate.texts.concept import Texts

BAND = (0.27, 0.87)  # shares of the depth; every block from the one to the other is steered


def steered_band(num_layers: int) -> tuple[int, ...]:
    """The blocks of the band, at least one."""
    first, last = (min(round(share * num_layers), num_layers - 1) for share in BAND)
    return tuple(range(first, last + 1))


def most_blocks(settings: Settings, num_layers: int) -> int:
    """How many single blocks the study chooses from; 1 where there is nothing to choose."""
    return min(MAX_BLOCKS, num_layers) if settings.layer == "search" else 1


def choose_sites(
    loaded: LoadedModel,
    corpus: Corpus,
    texts: Texts,
    vectors: Sequence[SteeringVector],
    most: int,
    settings: Settings,
) -> tuple[tuple[BlockRank, ...], list[Site]]:
    """Choose the sites of the study, ranking the blocks first where single ones are searched.

    vectors: of every block. most: single blocks to search, at most.
    """
    ranks: tuple[BlockRank, ...] = ()
    groups = [settings.blocks or steered_band(loaded.num_layers)]
    if settings.layer == "search":
        ranks = rank_blocks(loaded, corpus, texts, vectors, settings)
        groups = [(layer,) for layer in carried_blocks(ranks, loaded.num_layers)[:most]]
    return ranks, [
        Site(tuple(vectors[layer] for layer in layers), positions)
        for layers, positions in product(groups, settings.position_choices)
    ]


def as_first_chosen(
    sites: Sequence[Site], vectors: Sequence[SteeringVector], store: StudyStore
) -> list[Site]:
    """The sites that the study's first worker chose, among which all of its trials are.

    How many blocks are searched depends on what a worker may spend and how fast it is, and near
    ties between them on its arithmetic.
    """
    own = [[[vector.layer for vector in site.vectors], site.positions] for site in sites]
    return [
        Site(tuple(vectors[layer] for layer in layers), positions)
        for layers, positions in agreed(store, "sites", own)
    ]
