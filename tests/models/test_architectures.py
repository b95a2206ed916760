"""Steering means the same on every architecture: what a hand-written hook does."""

from __future__ import annotations

import pytest
import tiny
import torch
from accelerate import cpu_offload
from torch import nn

from calibrate.common.errors import ModelError
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.engine.site import SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.architecture import find_blocks
from calibrate.models.tokens import TokenSequence

IDS = torch.tensor([[7, 20, 9, 33, 12, 41], [5, 6, 30, 31, 8, 10]])


def vector(layer: int, size: int) -> SteeringVector:
    values = torch.randn(size, generator=torch.Generator().manual_seed(layer))
    return SteeringVector(values, layer, residual_norm=1.0)


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_steering_equals_a_hand_written_hook_at_every_block(architecture, positions):
    loaded = tiny.loaded(architecture)
    for layer, block in enumerate(loaded.blocks):
        steering = vector(layer, loaded.hidden_size)
        with steering.apply(loaded.blocks, 1.5, positions):
            ours = loaded.model(input_ids=IDS).logits
        with tiny.hand_written_hook(block, 1.5 * steering.values, last=positions == "last"):
            oracle = loaded.model(input_ids=IDS).logits
        unsteered = loaded.model(input_ids=IDS).logits
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-6)
        assert (ours - unsteered).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_steering_holds_through_cached_generation(architecture, positions):
    loaded = tiny.loaded(architecture)
    layer = loaded.num_layers - 1
    steering = vector(layer, loaded.hidden_size)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with steering.apply(loaded.blocks, 2.0, positions):
        ours = loaded.model.generate(input_ids=IDS, **options)
    last = positions == "last"
    with tiny.hand_written_hook(loaded.blocks[layer], 2.0 * steering.values, last=last):
        oracle = loaded.model.generate(input_ids=IDS, **options)
    assert ours.tolist() == oracle.tolist()


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
def test_the_parts_reproduce_the_logits(architecture):
    loaded = tiny.loaded(architecture)
    read = []
    handle = loaded.unembedding.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    expected = loaded.model(input_ids=IDS).logits
    handle.remove()
    torch.testing.assert_close(loaded.logits(read[0]), expected)


def test_nested_steering_adds_up_and_leaves_no_hook_behind(loaded):
    one, two = vector(0, loaded.hidden_size), vector(2, loaded.hidden_size)
    before = loaded.model(input_ids=IDS).logits
    with one.apply(loaded.blocks, 1.0), two.apply(loaded.blocks, -0.5):
        ours = loaded.model(input_ids=IDS).logits
    with (
        tiny.hand_written_hook(loaded.blocks[0], one.values),
        tiny.hand_written_hook(loaded.blocks[2], -0.5 * two.values),
    ):
        oracle = loaded.model(input_ids=IDS).logits
    torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded.model(input_ids=IDS).logits, before, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in loaded.model.modules())


class Unfamiliar(nn.Module):
    """A decoder whose blocks stand where no known architecture keeps them."""

    def __init__(self, lists: dict[str, int]) -> None:
        super().__init__()
        self.config = tiny.CONFIGS["llama"]()
        for name, length in lists.items():
            setattr(self, name, nn.ModuleList(nn.Linear(32, 32) for _ in range(length)))


def test_an_unknown_architecture_is_searched_for_its_one_fitting_module_list():
    odd = Unfamiliar({"towers": 3, "extras": 2})
    assert find_blocks(odd) is odd.towers


def test_blocks_can_be_named_by_path():
    odd = Unfamiliar({"towers": 3, "twins": 3})
    assert find_blocks(odd, "twins") is odd.twins


@pytest.mark.parametrize(
    ("lists", "blocks", "said"),
    [
        ({"towers": 3, "twins": 3}, None, r"found towers \(3\), twins \(3\); .*--blocks"),
        ({"towers": 2}, None, r"length 3, found towers \(2\)"),
        ({}, None, "found none"),
        ({"towers": 3}, "tower", r"got 'tower'; there are: towers \(3\)"),
    ],
)
def test_blocks_that_cannot_be_found_are_explained(lists, blocks, said):
    with pytest.raises(ModelError, match=said):
        find_blocks(Unfamiliar(lists), blocks)


def test_an_in_memory_model_needs_its_tokenizer():
    with pytest.raises(ModelError, match="needs its tokenizer"):
        load_model(tiny.model())


def test_a_layer_out_of_range_is_refused_with_the_range(loaded):
    with pytest.raises(ModelError, match=r"layer must be in 0\.\.2 for .*, got 3"):
        loaded.check_layer(3)
    with pytest.raises(ModelError, match="got -1"):
        loaded.check_layer(-1)


@torch.no_grad()
def test_blocks_that_accelerate_moves_about_are_steered_and_measured_the_same():
    """As where a model is spread over several devices: hooks bring the weights, or the input."""
    sequences = tuple(TokenSequence(tuple(row), 2) for row in IDS.tolist())
    steering, found = vector(1, 32), []
    for moved in (False, True):
        loaded = tiny.loaded("llama")
        if moved:
            for block in loaded.blocks:
                cpu_offload(block, execution_device=torch.device("cpu"))
            assert loaded.blocks[0].mlp.up_proj.weight.device.type == "meta"
        run = run_unsteered(loaded, Corpus(sequences, self_sampled=True), [1])
        assert run.batches[0].residuals
        found.append(delta_ce(loaded, run, tiny.site(steering.values, 1), 0.5).sums)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_model_may_be_spread_over_all_devices(tmp_path):
    whole = tiny.loaded("llama")
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    spread = load_model(str(tmp_path), device_map="balanced")
    assert (spread.identity.architecture, spread.dtype) == ("LlamaForCausalLM", torch.float32)
