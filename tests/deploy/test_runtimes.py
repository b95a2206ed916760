"""llama.cpp itself, PEFT and folded checkpoints serve a config, and ΔCE is measured in each."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
import tiny
import torch
from test_export import LAYER, config_for

from calibrate.artefact.evidence import Evidence
from calibrate.common.errors import ExportRefused, InputError, ModelError
from calibrate.deploy.checks import check_budget
from calibrate.deploy.export import export
from calibrate.deploy.export.control_vector import read_directions
from calibrate.deploy.runtimes import STACKS, check_stack, rise_in, serving
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.llama_cpp import LlamaCpp, _library, is_installed
from calibrate.models.model import preserving_model_state
from calibrate.models.tokens import TokenSequence

needs_llama_cpp = pytest.mark.skipif(not is_installed(), reason="xllamacpp is not installed")


def interleaved(weight, heads):
    """Rows of a query or key projection in the order llama.cpp rotates them in."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model):
    """A random Llama as the GGUF file llama.cpp loads, F32, without a tokenizer."""
    config, weights = model.config, {k: v.float().numpy() for k, v in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs == "attn_q":
                weight = interleaved(weight, config.num_attention_heads)
            if theirs == "attn_k":
                weight = interleaved(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def loaded():
    return tiny.loaded("llama")


@pytest.fixture(scope="module")
def model_gguf(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, loaded.model)
    return path


@pytest.fixture(scope="module")
def config(finished, loaded):
    return config_for(finished.result.config, loaded)


def log_probs(logits):
    return torch.log_softmax(torch.from_numpy(logits).float(), dim=-1)


@needs_llama_cpp
def test_llama_cpp_computes_what_transformers_does(loaded, model_gguf):
    ids = [7, 12, 20, 9, 30, 6, 11]
    with LlamaCpp(model_gguf) as engine, preserving_model_state(loaded):
        expected = loaded.model(input_ids=torch.tensor([ids])).logits[0]
        assert log_probs(engine.logits(ids)).numpy() == pytest.approx(
            torch.log_softmax(expected, -1).numpy(), abs=1e-4
        )
        assert engine.logits(ids[:3]).shape == (3, loaded.vocabulary_size)
        following = engine.logits(ids[3:], after=3)
        assert following == pytest.approx(engine.logits(ids)[3:], abs=1e-4)
        shape = (engine.num_layers, engine.hidden_size, engine.vocabulary_size)
    assert shape == (loaded.num_layers, loaded.hidden_size, loaded.vocabulary_size)


@needs_llama_cpp
def test_llama_cpp_reproduces_the_reference_with_the_exported_file(
    loaded, config, model_gguf, tmp_path
):
    export(config, "gguf", tmp_path / "v.gguf", loaded)
    directions = read_directions(tmp_path / "v.gguf")
    reference = config.reference
    wrong = {
        "off by one": {LAYER + 1: directions[LAYER]},
        "opposite sign": {LAYER: -directions[LAYER]},
        "other scale": {LAYER: 1.5 * directions[LAYER]},
    }
    with LlamaCpp(model_gguf) as engine:

        def gap(steering):
            engine.steer(steering)
            found = log_probs(engine.logits(reference.input_ids))[-1][reference.token_ids]
            return float((found - torch.tensor(reference.log_probs)).abs().max())

        assert gap(directions) < 1e-4
        assert min(gap(steering) for steering in wrong.values()) > 0.02
        assert gap(None) > 0.02
        assert gap(directions) < 1e-4


@needs_llama_cpp
def test_a_gguf_of_another_shape_is_refused(loaded, config, tmp_path):
    write_gguf(tmp_path / "small.gguf", tiny.model("llama", layers=2))
    with (
        pytest.raises(InputError, match=r"3 blocks of size 32, got 2 blocks of size 32 in .*small"),
        serving("llama.cpp", config, loaded, 8, tmp_path / "small.gguf"),
    ):
        pass


@pytest.mark.parametrize("self_sampled", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_delta_ce_in_every_stack_is_what_it_is_here(
    name, self_sampled, loaded, config, model_gguf, sequences
):
    if name == "llama.cpp" and not is_installed():
        pytest.skip("xllamacpp is not installed: pip install -e .[llama-cpp]")
    done = config.intervention
    corpus = Corpus(tuple(sequences), self_sampled)
    with preserving_model_state(loaded):
        run = run_unsteered(loaded, corpus, [done.layer])
        values = config.steering_vector.values
        here = delta_ce(loaded, run, tiny.site(values, done.layer), done.strength)
    gguf_file = model_gguf if name == "llama.cpp" else None
    with serving(name, config, loaded, 18, gguf_file) as stack:
        there = rise_in(stack, corpus)
    assert there.sums == pytest.approx(here.sums, abs=1e-3)
    assert np.array_equal(there.counts, here.counts)
    assert not any(module._forward_hooks for module in loaded.model.modules())


@needs_llama_cpp
def test_prompts_of_any_length_are_served_by_llama_cpp(
    finished, loaded, config, model_gguf, monkeypatch, tmp_path
):
    """llama.cpp ends the process where a batch is longer than it was told."""
    directory = shutil.copytree(finished.directory, tmp_path / "long")
    for name, content in config.files().items():
        (directory / name).write_bytes(content)
    length = 600 + config.settings.sampling.max_new_tokens
    ids = tuple(np.random.default_rng(0).integers(5, loaded.vocabulary_size, length).tolist())
    sequences = tuple(TokenSequence(ids[n:], length - 12) for n in range(3))
    corpus = Corpus(sequences, self_sampled=True)
    monkeypatch.setattr("calibrate.deploy.runtimes.budget_corpus", lambda *_: corpus)
    found = check_stack(directory, loaded, "llama.cpp", model_gguf)
    here = check_stack(directory, loaded, "peft")
    assert found.found == here.found


@needs_llama_cpp
def test_more_tokens_than_llama_cpp_was_opened_for_are_refused(model_gguf):
    with LlamaCpp(model_gguf, 600) as engine:
        assert engine.logits([7] * 600).shape[0] == 600
        with pytest.raises(ModelError, match=r"at most the 600 tokens .*, got 601; open it for"):
            engine.logits([7] * 601)
        engine.logits([7] * 599)
        with pytest.raises(ModelError, match="got 601"):
            engine.logits([7] * 2, after=599)


@needs_llama_cpp
def test_a_context_that_finds_no_room_is_an_error(model_gguf, monkeypatch):
    monkeypatch.setattr(_library(), "llama_init_from_model", lambda *_: None)
    with pytest.raises(ModelError, match=r"must hold 512 tokens of .*gguf at once, and cannot"):
        LlamaCpp(model_gguf)


def test_a_stack_is_judged_by_the_configs_own_budget(finished):
    loaded = tiny.loaded("gpt2")
    check = check_stack(finished.directory, loaded, "folded")
    recorded = finished.result.config.measured.delta_ce
    assert check.passed
    assert check.name == "budget in folded"
    assert f"ΔCE {recorded.value:.4f}" in check.found


def test_a_stack_is_judged_on_the_corpus_that_is_given(finished, tmp_path):
    loaded = tiny.loaded("gpt2")
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(tiny.texts(tiny.DULL, 60, seed=5)))
    evidence = Evidence.load(finished.directory)
    with preserving_model_state(loaded):
        here = check_budget(finished.result.config, evidence, loaded, file)
    there = check_stack(finished.directory, loaded, "folded", corpus=file)
    assert "on 60 sequences" in there.found
    assert (there.found, there.passed) == (here.found, here.passed)


def test_a_budget_of_a_corpus_file_is_judged_on_no_other_text(finished, tmp_path):
    directory = shutil.copytree(finished.directory, tmp_path / "copy")
    facts = json.loads((directory / "steering.json").read_text())
    facts["measured"]["delta_ce"]["corpus"] = "file"
    (directory / "steering.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="give that file with --corpus FILE"):
        check_stack(directory, tiny.loaded("gpt2"), "peft")


def test_what_a_stack_cannot_do_is_refused_with_the_way_out(finished, loaded, config):
    with (
        pytest.raises(InputError, match=r"--against must be one of llama\.cpp, .*mean peft"),
        serving("pfet", config, loaded, 8),
    ):
        pass
    with (
        pytest.raises(InputError, match="as a GGUF file; name it with --gguf FILE"),
        serving("llama.cpp", config, loaded, 8),
    ):
        pass
    last = config_for(finished.result.config, loaded, positions="last")
    with (
        pytest.raises(ExportRefused, match="steers every position"),
        serving("peft", last, loaded, 8),
    ):
        pass
