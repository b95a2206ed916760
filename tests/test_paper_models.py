"""The paper's eleven models: published shapes by their size, tiny ones by the whole main job."""

from __future__ import annotations

import paper_models
import pytest
import tiny
import torch

import calibrate

BY_NAME = {model.name: model for model in paper_models.MODELS}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_published_shape_has_the_parameters_its_authors_say(name):
    model = BY_NAME[name]
    with torch.device("meta"):
        made = tiny.of_class(model.config())
    billions = sum(weight.numel() for weight in made.parameters()) / 1e9
    assert billions == pytest.approx(model.billions, rel=0.04)
    tied = made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert tied == model.tied


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_a_tiny_model_of_each_is_calibrated_and_its_curves_are_measured(name, tiny_options):
    made = BY_NAME[name].built_tiny()
    last = made.config.get_text_config().num_hidden_layers - 1
    steered = tiny_options | {"layer": last, "judge": tiny.share_of_bright_words, "long_run": 0}
    config = calibrate.calibrate(made, **steered).config
    assert 0 < config.measured.delta_ce.upper <= tiny_options["ce_budget"]
    shared = ("concept", "tokenizer", "prompts", "ce_budget", "sampling")
    curves = calibrate.measure_laws(
        made, layers=(last,), **{key: tiny_options[key] for key in shared}
    )
    (block,) = curves.blocks
    unit = block.strength_at_budget["positive"].value
    spent = block.delta_ce[block.strengths.index(unit)]
    assert spent == pytest.approx(tiny_options["ce_budget"], rel=0.02)
    for far in block.far.values():
        assert far.shared >= 9
