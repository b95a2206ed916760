"""Reading and steering the residual stream, against what transformers reports itself."""

from __future__ import annotations

import pytest
import tiny
import torch

from calibrate.common.errors import NumericalError
from calibrate.engine.cross_entropy import _run_from, steered_hidden
from calibrate.engine.forward import final_hidden
from calibrate.engine.pooling import pooled_residuals
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.tokens import TokenSequence, batches

ROUNDING = 2e-5  # float32, on residuals of size 1 to 10


def hidden_states(loaded, sequence):
    """What transformers says the residual stream is after every block but the last."""
    ids = torch.tensor([sequence.ids])
    return loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1]


def means(loaded, sequences, layers, pooling="mean"):
    rows = torch.zeros(len(layers), len(sequences), loaded.hidden_size)
    for pooled in pooled_residuals(loaded, sequences, layers, pooling):
        rows[:, list(pooled.rows)] = pooled.means
    return rows


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt", "bloom"])
def test_token_means_leave_out_prompt_first_position_and_padding(architecture, sequences):
    loaded = tiny.loaded(architecture)
    ours = means(loaded, sequences, [0, 1])
    for row, sequence in enumerate(sequences):
        for layer, hidden in enumerate(hidden_states(loaded, sequence)):
            expected = hidden[0, sequence.start :].mean(dim=0)
            torch.testing.assert_close(ours[layer, row], expected, rtol=0, atol=ROUNDING)


def test_last_token_pooling_takes_the_last_token(loaded, sequences):
    ours = means(loaded, sequences, [1], pooling="last")
    for row, sequence in enumerate(sequences):
        expected = hidden_states(loaded, sequence)[1][0, -1]
        torch.testing.assert_close(ours[0, row], expected, rtol=0, atol=ROUNDING)


def test_batch_size_changes_nothing(sequences):
    together = means(tiny.loaded(batch_tokens=2048), sequences, [0, 1, 2])
    alone = means(tiny.loaded(batch_tokens=1), sequences, [0, 1, 2])
    torch.testing.assert_close(together, alone, rtol=0, atol=ROUNDING)


def test_blocks_after_the_last_one_asked_for_are_not_run(loaded, sequences):
    ran = []
    loaded.capabilities.report()  # tried before blocks are counted
    handles = [
        block.register_forward_hook(lambda _m, _a, _o, layer=layer: ran.append(layer))
        for layer, block in enumerate(loaded.blocks)
    ]
    list(pooled_residuals(loaded, sequences, [0]))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0}


def test_an_attention_sink_in_the_text_is_left_out_of_the_mean():
    loaded = tiny.loaded(layers=2)
    sequence = TokenSequence((5, 6, 7, 8, 9, 10), start=1)
    sink = 3

    def make_sink(_module, _args, output):
        output = output.clone()
        output[:, sink] *= 1000
        return output

    handle = loaded.blocks[0].register_forward_hook(make_sink)
    pooled = next(iter(pooled_residuals(loaded, [sequence], [0])))
    handle.remove()
    plain = loaded.model(input_ids=torch.tensor([sequence.ids]), output_hidden_states=True)
    kept = [position for position in range(1, 6) if position != sink]
    expected = plain.hidden_states[1][0, kept].mean(dim=0)
    torch.testing.assert_close(pooled.means[0, 0], expected, rtol=0, atol=ROUNDING)
    assert pooled.n_sinks.tolist() == [1]
    assert len(pooled.norms[0]) == len(kept)


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_suffix_only_pass_equals_a_full_steered_pass(architecture, positions, sequences):
    loaded = tiny.loaded(architecture, batch_tokens=40)
    corpus = Corpus(tuple(sequences), self_sampled=True)
    layers = list(range(loaded.num_layers))
    kept, full = run_unsteered(loaded, corpus, layers), run_unsteered(loaded, corpus, [])
    shift = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    for layer in layers:
        for one, other in zip(kept.batches, full.batches, strict=True):
            assert one.residuals
            assert not other.residuals
            suffix = steered_hidden(loaded, one, tiny.site(shift, layer, positions), 1.0)
            whole = steered_hidden(loaded, other, tiny.site(shift, layer, positions), 1.0)
            torch.testing.assert_close(suffix, whole, rtol=0, atol=ROUNDING)


def test_a_suffix_only_pass_costs_the_share_of_blocks_it_runs(loaded, sequences):
    run = run_unsteered(loaded, Corpus(tuple(sequences), True), [1])
    full = sum(one.batch.n_tokens for one in run.batches)
    before = loaded.meter.tokens
    for one in run.batches:
        steered_hidden(loaded, one, tiny.site(torch.zeros(loaded.hidden_size), 1), 1.0)
    assert loaded.meter.tokens - before == round(full / 3)


def test_blocks_that_share_state_make_every_strength_run_in_full(loaded, sequences):
    """Block 2 needs something block 0 left behind, as in models that share keys and values."""
    left: dict[str, torch.Tensor] = {}
    first, last = loaded.blocks[0], loaded.blocks[2]
    first_forward, last_forward = first.forward, last.forward

    def leaves(hidden, *args, **kwargs):
        left["hidden"] = hidden
        return first_forward(hidden, *args, **kwargs)

    def needs(hidden, *args, **kwargs):
        return last_forward(hidden, *args, **kwargs) + left.pop("hidden")

    first.forward, last.forward = leaves, needs
    with pytest.warns(UserWarning, match="without suffix passes, so every strength"):
        run = run_unsteered(loaded, Corpus(tuple(sequences), True), [1])
    shift = torch.ones(loaded.hidden_size)
    for one in run.batches:
        assert not one.residuals
        ours = steered_hidden(loaded, one, tiny.site(shift, 1), 1.0)
        with tiny.hand_written_hook(loaded.blocks[1], shift):
            oracle = final_hidden(loaded, one.batch)
        torch.testing.assert_close(ours, oracle, rtol=0, atol=ROUNDING)
    assert first.forward is leaves


def test_borrowed_methods_come_back_after_an_error(loaded, sequences):
    run = run_unsteered(loaded, Corpus(tuple(sequences), True), [1])

    def explode(_hidden):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        _run_from(loaded, run.batches[0], {1: explode}, "all")
    assert all("forward" not in block.__dict__ for block in loaded.blocks)
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_activations_that_are_not_finite_are_refused(sequences):
    loaded = tiny.loaded()
    loaded.blocks[1].mlp.down_proj.weight.fill_(float("inf"))
    batch = next(iter(batches(sequences, 2048)))
    with pytest.raises(NumericalError, match=r"NaN or infinity in torch\.float32; use --dtype"):
        final_hidden(loaded, batch)
    with pytest.raises(NumericalError):
        list(pooled_residuals(loaded, sequences, [2]))
