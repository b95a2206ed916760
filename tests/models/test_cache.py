"""What is kept for the next calibration."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import tiny
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import dynamic_module_utils

from calibrate import calibrate
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.loading import load_model
from calibrate.models import cache
from calibrate.models.cache import (
    _sums,
    load_or_compute,
    model_digest,
    weights_digest,
    weights_hashed_once,
)
from calibrate.models.configuration import configuration
from calibrate.texts.concept import read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import REPLIES, sample_unsteered

REQUEST = {"prompts": ["a", "b"], "seed": 0}
SAID = [[1, 2], [3]]


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A model as if loaded by name, and an empty cache."""
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path))
    return replace(tiny.loaded("llama"), by_name=True)


def never():
    raise AssertionError("sampled again")


def test_the_tests_keep_nothing_where_users_do():
    assert cache.cache_directory() != Path(platformdirs.user_cache_dir("steering-calibrate"))


def test_what_was_said_is_recalled(loaded):
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID) == SAID
    assert load_or_compute(loaded, REPLIES, REQUEST, never) == SAID


def test_another_request_is_sampled(loaded):
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    assert load_or_compute(loaded, REPLIES, {**REQUEST, "seed": 1}, lambda: [[4]]) == [[4]]


def test_one_changed_weight_is_another_model(loaded):
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    with torch.no_grad():
        next(loaded.model.parameters())[0, 0] += 1e-3
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: [[4]]) == [[4]]


def test_other_template_variables_or_another_day_are_another_model(loaded):
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    for change in ({"date": "2001-02-03"}, {"kwargs": {"enable_thinking": False}}):
        other = replace(loaded, rendering=replace(loaded.rendering, **change))
        assert load_or_compute(other, REPLIES, REQUEST, lambda: [[4]]) == [[4]]


def test_of_a_model_that_was_in_memory_nothing_is_kept(loaded):
    in_memory = replace(loaded, by_name=False)
    load_or_compute(in_memory, REPLIES, REQUEST, lambda: SAID)
    assert load_or_compute(in_memory, REPLIES, REQUEST, lambda: [[4]]) == [[4]]


def test_of_a_model_whose_weights_are_elsewhere_nothing_is_kept(loaded):
    cpu_offload(loaded.blocks[0], execution_device=torch.device("cpu"))
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: [[4]]) == [[4]]


def test_while_a_model_is_steered_nothing_is_kept_or_recalled(loaded):
    with tiny.site(torch.ones(32), 1).apply(loaded.blocks, 1.0):
        load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: [[4]]) == [[4]]
    with tiny.site(torch.ones(32), 1).apply(loaded.blocks, 1.0):
        assert load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID) == SAID
    assert load_or_compute(loaded, REPLIES, REQUEST, never) == [[4]]


def test_under_hooks_of_others_nothing_is_kept_and_the_configuration_says_so(loaded):
    def watch(*_args):
        return None

    before = configuration(loaded)
    for handle in (
        loaded.blocks[1].register_forward_hook(watch),
        loaded.blocks[1].register_forward_pre_hook(partial(watch)),
    ):
        load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
        assert configuration(loaded) != before
        handle.remove()
    assert configuration(loaded) == before
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: [[4]]) == [[4]]


def test_hooks_by_which_transformers_records_outputs_change_nothing(loaded):
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    loaded.model(input_ids=torch.tensor([[7, 8]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in loaded.model.modules())
    assert load_or_compute(loaded, REPLIES, REQUEST, never) == SAID


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 1}'])
def test_a_damaged_entry_is_sampled_again(loaded, tmp_path, damage):
    load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    (entry,) = (tmp_path / "kept").glob(f"*/{REPLIES.last}")
    entry.write_text(damage)
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID) == SAID
    assert load_or_compute(loaded, REPLIES, REQUEST, never) == SAID


def test_an_unwritable_cache_costs_nothing_but_time(loaded, tmp_path):
    (tmp_path / "kept").write_text("a file where the folder should be")
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID) == SAID


def test_the_least_recently_used_go(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 25)  # three of the entries, which are 8 bytes each
    ticks = iter(range(1000))
    utime = cache.os.utime
    monkeypatch.setattr(cache.os, "utime", lambda path: utime(path, (next(ticks) + 1e9,) * 2))
    for seed in (0, 1, 2, 0, 3):
        load_or_compute(loaded, REPLIES, {"seed": seed}, lambda: [[1, 100]])
        load_or_compute(loaded, REPLIES, {"seed": seed}, never)
    assert sum(path.stat().st_size for path in (tmp_path / "kept").glob("*/*")) <= 25
    load_or_compute(loaded, REPLIES, {"seed": 0}, never)
    assert load_or_compute(loaded, REPLIES, {"seed": 1}, lambda: [[9]]) == [[9]]


def test_recalled_replies_are_those_that_were_sampled(loaded):
    settings = Settings(sampling=Sampling(max_new_tokens=4))
    prompts = read_prompts()[:24]
    first = sample_unsteered(loaded, prompts, settings)
    spent = loaded.meter.tokens
    assert sample_unsteered(loaded, prompts, settings) == first
    assert loaded.meter.tokens == spent


def test_the_weights_are_hashed_once_where_they_stay_as_they_are(loaded, monkeypatch):
    hashed = []
    state = loaded.model.state_dict
    monkeypatch.setattr(loaded.model, "state_dict", lambda: hashed.append(1) or state())
    with weights_hashed_once(loaded):
        for seed in range(3):
            load_or_compute(loaded, REPLIES, {"seed": seed}, lambda: SAID)
    assert len(hashed) == 1
    load_or_compute(loaded, REPLIES, {"seed": 0}, never)
    assert len(hashed) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hash_tells_weights_apart_by_any_bit_and_by_their_order(dtype):
    def hashed(change=lambda weight: None):
        model = tiny.model("gpt2").to(dtype)
        with torch.no_grad():
            change(model.transformer.h[1].mlp.c_fc.weight)
        return weights_digest(load_model(model, tiny.tokenizer()))

    def least(weight):
        weight[2, 3] = torch.nextafter(weight[2, 3], torch.tensor(9.0, dtype=dtype))

    def swapped(weight):
        weight[[0, 5]] = weight[[5, 0]]

    def moved(weight):
        """Of the same sum."""
        weight[0, :2] = weight[0, :2].flip(0)

    marks = [hashed(), hashed(least), hashed(swapped), hashed(moved)]
    assert hashed() == marks[0]
    assert len({*marks}) == len(marks)


def test_weights_are_hashed_in_parts_as_in_one(monkeypatch):
    values = torch.arange(-50, 51, dtype=torch.float64).reshape(1, 101)
    whole = _sums(values)
    monkeypatch.setattr(cache, "AT_ONCE", 7)
    assert _sums(values) == whole
    numbers = [int(each) for each in values.flatten().view(torch.int64)]
    wrapped = sum(n * (place * cache.MIXED) for place, n in enumerate(numbers, 1))
    assert [each % 2**64 for each in whole] == [sum(numbers) % 2**64, wrapped % 2**64]


def test_weights_that_are_not_here_have_no_hash():
    model = tiny.model("gpt2")
    loaded = load_model(model, tiny.tokenizer())
    assert weights_digest(loaded) is not None
    model.transformer.h[0].to("meta")
    assert weights_digest(loaded) is None


def test_a_configuration_tells_models_of_the_same_weights_apart():
    def digest(change=lambda model: None):
        model = tiny.model("llama")
        change(model)
        return model_digest(load_model(model, tiny.tokenizer()))

    def ends_elsewhere(model):
        model.generation_config.eos_token_id = [2, 30]

    def turns_faster(model):
        model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 20.0}

    plain, again, *others = digest(), digest(), digest(ends_elsewhere), digest(turns_faster)
    assert plain == again
    assert len({plain, *others}) == 3


def test_a_configuration_tells_adapters_of_the_same_weights_apart():
    def digest(change=lambda model: None, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            lora = LoraConfig(
                r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                **{"lora_alpha": 4, **options},
            )  # fmt: skip
            model = get_peft_model(tiny.model("llama"), lora)
            model.add_adapter("b", lora)
        change(model)
        return model_digest(load_model(model, tiny.tokenizer()))

    def scaled(model):
        model.base_model.model.model.layers[0].self_attn.q_proj.scale_layer(2.0)

    digests = [
        digest(),
        digest(lora_alpha=8),
        digest(use_rslora=True),
        digest(lambda model: model.set_adapter("b")),
        digest(lambda model: model.base_model.disable_adapter_layers()),
        digest(scaled),
    ]
    assert digest() == digests[0]
    assert len({*digests}) == len(digests)


def test_a_configuration_tells_which_blocks_were_named():
    model = tiny.model("llama")
    model.others = nn.ModuleList(model.model.layers)
    one, other = (
        model_digest(load_model(model, tiny.tokenizer(), blocks=path))
        for path in ("model.layers", "others")
    )
    assert one != other


def test_a_configuration_tells_when_a_checkpoints_own_code_was_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [each for each in sys.modules if each.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "coded"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_coded.Coded"}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import LlamaForCausalLM\n\nfrom .part import N\n\n\n"
    code += "class Coded(LlamaForCausalLM):\n    n = N\n"
    (folder / "modeling_coded.py").write_text(code)

    def digest(part):
        (folder / "part.py").write_text(part)
        loaded = load_model(str(folder), trust_remote_code=True)
        assert type(loaded.model).__name__ == "Coded"
        return model_digest(loaded)

    one, other = digest("N = 1\n"), digest("N = 2\n")
    assert one != other
    assert digest("N = 1\n") == one


@pytest.mark.parametrize("negatives", ["contrastive", "random"])
def test_recalled_vectors_are_those_that_were_extracted(loaded, negatives):
    settings, texts = Settings(negatives=negatives), tiny.concept().split()["vector"]
    first = concept_vectors(loaded, texts, settings)
    spent = loaded.meter.tokens
    again = concept_vectors(loaded, texts, settings)
    assert loaded.meter.tokens == spent
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.values, other.values)
        assert (one.layer, one.residual_norm, one.n_sinks) == (
            other.layer,
            other.residual_norm,
            other.n_sinks,
        )
    concept_vectors(loaded, texts, replace(settings, normalize=True))
    assert loaded.meter.tokens > spent


def test_another_budget_finds_the_vectors_and_the_probe(loaded, tiny_options):
    model = replace(tiny.loaded("gpt2"), by_name=True)
    results = [
        calibrate(model, **{**tiny_options, "tokenizer": None, "ce_budget": budget})
        for budget in (0.4, 0.45)
    ]
    for stage in ("unsteered replies", "steering vectors", "judges"):
        first, second = (result.config.cost[stage].token_forwards for result in results)
        assert first > 2 * second
    one, other = (result.probe for result in results)
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.learned == other.learned
    assert (one.layers, one.bias, one.clearly) == (other.layers, other.bias, other.clearly)


def test_a_cache_that_another_process_clears_meanwhile_costs_nothing_but_time(loaded, monkeypatch):
    def vanished(_folder):
        raise FileNotFoundError("an entry that was listed is gone")

    monkeypatch.setattr(cache, "_make_room", vanished)
    assert load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID) == SAID


def test_a_model_may_be_in_use_twice(loaded):
    with weights_hashed_once(loaded), weights_hashed_once(loaded):
        load_or_compute(loaded, REPLIES, REQUEST, lambda: SAID)
    load_or_compute(loaded, REPLIES, REQUEST, never)


def test_an_error_on_the_way_is_not_blamed_on_the_empty_cache(loaded):
    with pytest.raises(ZeroDivisionError) as raised:
        load_or_compute(loaded, REPLIES, REQUEST, lambda: 1 / 0)
    assert raised.value.__context__ is None
