"""Models whose parts or habits cannot be relied on: what is tried, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import small_architectures
import sweep
import tiny
import torch
from peft import LoraConfig, get_peft_model
from refused import Refused, each
from torch import nn
from torch.nn import functional

from calibrate.artefact import config as configs
from calibrate.common.errors import CalibrateWarning, InputError, ModelError, NumericalError
from calibrate.common.settings import Sampling
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Request, sample_all
from calibrate.engine.loading import load_model
from calibrate.engine.tries import Tries
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.architecture import ENDLESS, context_length, find_blocks
from calibrate.models.prompts import encode_prompt, encode_text
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt

SHORTCUTS = "suffix_passes prefix_sharing batching fast_decoding decoding_prefix".split()


def with_logits(change, architecture="llama", dtype=torch.float32):
    """A model that does something to its logits after the unembedding."""
    made = tiny.model(architecture).to(dtype)
    forward = made.forward

    def changed(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    made.forward = changed
    return made


def load(made, **options):
    return load_model(made, tiny.tokenizer(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "scale", "cap"),
    [
        (lambda raw: raw, 1.0, None),
        (lambda raw: raw / 13, 1 / 13, None),
        (lambda raw: raw * 0.0625, 0.0625, None),
        (lambda raw: -2.5 * raw, -2.5, None),
        (lambda raw: 30 * torch.tanh(raw / 30), 1.0, 30.0),
        (lambda raw: 15 * torch.tanh(0.25 * raw / 15), 0.25, 15.0),
        (lambda raw: 4 * (5 * torch.tanh(raw / 5)), 4.0, 20.0),
    ],
    ids=[
        "as they are",
        "divided",
        "scaled",
        "turned",
        "capped",
        "scaled, capped",
        "capped, scaled",
    ],
)
def test_the_logit_rule_is_read_off_the_model(change, scale, cap, dtype):
    loaded = load(with_logits(change, dtype=dtype))
    rounding = 1e-6 if dtype == torch.float32 else 5e-3
    assert loaded.logit_scale == pytest.approx(scale, rel=rounding)
    assert loaded.softcap == (None if cap is None else pytest.approx(cap, rel=rounding))


@pytest.mark.parametrize("architecture", [*tiny.CONFIGS])
def test_ordinary_models_take_every_shortcut_and_nothing_is_warned_of(architecture, recwarn):
    loaded = tiny.loaded(architecture)
    report = loaded.capabilities.report()
    assert all(getattr(report, name).works for name in SHORTCUTS)
    assert report.batched_generation is None
    assert loaded.capabilities.forking.works
    assert not [one for one in recwarn if one.category is CalibrateWarning]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_half_precision_is_no_reason_to_go_without(architecture, dtype):
    report = load(tiny.model(architecture).to(dtype)).capabilities.report()
    assert all(getattr(report, name).works for name in SHORTCUTS)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_adapters_in_memory_take_every_shortcut(options):
    """Their wrapper's forward takes anything; what the model takes has to be asked of the model."""
    wanted = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, **options)
    report = load(get_peft_model(tiny.model("gpt2"), wanted).eval()).capabilities.report()
    assert all(getattr(report, name).works for name in SHORTCUTS)


def test_trying_disturbs_nothing():
    made = tiny.model().train()
    loaded = load(made)
    state, kept = torch.get_rng_state(), {k: v.clone() for k, v in made.state_dict().items()}
    own = made.generation_config
    report = loaded.capabilities.report()
    assert made.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, kept[k]) for k, v in made.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())
    assert not any("forward" in vars(module) for module in made.modules())
    assert made.generation_config is own
    assert (loaded.meter.tokens, report.token_forwards > 0) == (0, True)


def test_each_is_tried_once_and_only_when_it_is_wanted(loaded, sequences, monkeypatch):
    monkeypatch.setattr(Tries, "reply_gap", lambda *_: pytest.fail("nobody replies here"))
    tried = []
    for name in ("suffix_gap", "prefix_gap", "batch_gap"):
        plain = getattr(Tries, name)
        monkeypatch.setattr(Tries, name, lambda *args, n=name, p=plain: tried.append(n) or p(*args))
    for _ in range(2):
        run_unsteered(loaded, Corpus(tuple(sequences), True), [1])
    assert sorted(tried) == ["batch_gap", "suffix_gap"]


def test_replies_take_no_suffix_pass(loaded, monkeypatch):
    monkeypatch.setattr(Tries, "suffix_gap", lambda *_: pytest.fail("not wanted here"))
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(3)]
    assert sample_all(loaded, [Request(prompts)], Sampling(max_new_tokens=2), seed=0)[0]


def test_the_report_fits_json_and_says_why_and_what_is_done_instead():
    loaded = load(small_architectures.build("rwkv"))
    with pytest.warns(CalibrateWarning) as warned:
        report = loaded.capabilities.report()
    assert loaded.capabilities.report() == report
    assert json.loads(json.dumps(asdict(report))) == asdict(report)
    without = {name for name, found in vars(report).items() if getattr(found, "fallback", None)}
    assert without == {"prefix_sharing", "fast_decoding", "decoding_prefix", "batched_generation"}
    assert "off by" in report.batched_generation.reason
    assert report.batched_generation.fallback == "prompts are replied to one by one"
    said = [str(one.message) for one in warned if one.category is CalibrateWarning]
    assert len(said) == len(set(said)) == 3  # one a try; the decoding prefix was not tried
    assert all("RwkvForCausalLM goes without" in message for message in said)


def looks_aside(loaded):
    """Let every row's residuals depend on the other rows of its batch."""
    block = loaded.blocks[0]
    forward = block.forward

    def spoilt(hidden, *args, **kwargs):
        out = forward(hidden, *args, **kwargs)
        return out + 0.3 * (out.mean(dim=0, keepdim=True) - out)

    block.forward = spoilt
    return loaded


def test_rows_that_depend_on_their_neighbours_are_run_one_by_one(sequences):
    loaded = looks_aside(tiny.loaded())
    site = tiny.site(torch.ones(loaded.hidden_size), 1)
    with pytest.warns(CalibrateWarning, match="without batching, so texts run one by one"):
        run = run_unsteered(loaded, Corpus(tuple(sequences), True), [1])
    assert all(len(one.batch.rows) == 1 for one in run.batches)
    ours = torch.tensor(delta_ce(loaded, run, site, 1.0).sums)
    expected = torch.stack([sweep._rise(loaded, text, site, True) for text in sequences])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert all(sweep.replies_agree(loaded, site, mode) for mode in (sweep.GREEDY, sweep.SAMPLED))


def test_whatever_a_try_raises_is_a_no_with_its_first_line(loaded, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(Tries, "prefix_gap", broken)
    with pytest.warns(CalibrateWarning, match=r"\(ZeroDivisionError: first line\)"):
        found = loaded.capabilities.prefix_sharing
    assert (found.works, found.reason) == (False, "ZeroDivisionError: first line")


def test_activations_that_are_not_finite_are_no_matter_of_a_shortcut(loaded, recwarn):
    loaded.blocks[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(NumericalError):
        assert loaded.capabilities.batching
    assert not [one for one in recwarn if one.category is CalibrateWarning]


def test_a_config_says_what_the_model_could_do(finished, tmp_path):
    section = finished.result.config.capabilities
    assert section.fast_decoding.works
    assert section.logit_scale == 1.0
    text = (finished.directory / configs.CONFIG_FILE).read_text(encoding="utf-8")
    assert json.loads(text)["capabilities"]["suffix_passes"]["works"] is True
    older = {name: part for name, part in json.loads(text).items() if name != "capabilities"}
    assert type(finished.result.config).model_validate(older).capabilities is None


@pytest.mark.parametrize(
    ("entries", "length"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"n_positions": 100}, 100),
        ({"n_ctx": 100}, 100),
        ({"max_seq_len": 100}, 100),
        ({"max_seq_length": 100}, 100),
        ({"max_sequence_length": 100}, 100),
        ({"model_max_length": 100}, 100),
        ({"seq_length": 100}, 100),
        ({"context_length": 100}, 100),
        ({"max_position_embeddings": None, "relative_max_distance": 8}, ENDLESS),
        ({"sliding_window": 8, "max_window_layers": 3}, ENDLESS),
        ({"original_max_position_embeddings": 8}, ENDLESS),
        ({}, ENDLESS),
    ],
)
def test_the_context_is_found_whatever_it_is_called(entries, length):
    assert context_length(SimpleNamespace(**entries, to_dict=lambda: entries)) == length


@pytest.mark.parametrize(
    ("architecture", "length"),
    [("gpt2", 128), ("mpt", 128), ("dbrx", 128), ("bloom", ENDLESS), ("mamba", ENDLESS)],
)
def test_the_context_of_a_model(architecture, length):
    assert context_length(small_architectures.tiny_config(architecture)) == length


def without_room():
    """A model with fewer embedding rows than its tokenizer has words."""
    made = tiny.model()
    made.resize_token_embeddings(20)
    return load(made)


def never_read():
    """A model that multiplies by its output embedding's weights without running it."""
    made = tiny.model()

    def own_product(input_ids, **_kwargs):
        hidden = made.model(input_ids).last_hidden_state
        return SimpleNamespace(logits=functional.linear(hidden, made.lm_head.weight))

    made.forward = own_product
    return made


def reply(loaded, positions="all"):
    push = Steering({1: torch.ones(loaded.hidden_size)}, positions)
    with pytest.warns(CalibrateWarning):
        sample_all(loaded, [Request([Prompt("a", (5, 6, 7))], 1, push)], Sampling(), seed=0)


def mute():
    """A model that can be read and cannot be generated from."""
    made = tiny.model()

    def refuse(**_kwargs):
        raise ValueError("no generation here\nsecond line")

    made.generate = refuse
    return load(made)


class Twins(nn.Module):
    """Two module lists, each as long as there are blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny.CONFIGS["llama"]()
        self.one, self.two = (nn.ModuleList(nn.Linear(2, 2) for _ in range(3)) for _ in range(2))


REFUSED = [
    Refused(
        "a model that does to its logits what is neither scaling nor soft-capping",
        "logit rule unknown: the logits of LlamaForCausalLM must be those of its output embedding, "
        "scaled or soft-capped, but of what the output embedding puts out, 1 becomes 1, 10 becomes "
        "3.162, 100 becomes 10, 1000 becomes 31.62",
        lambda _: load(with_logits(lambda raw: raw.sign() * raw.abs() ** 0.5)),
        ModelError,
    ),
    Refused(
        "a model that leaves out some of its logits",
        "logit rule unknown: …, but 44 raw logits become 43",
        lambda _: load(with_logits(lambda raw: raw[..., 1:])),
        ModelError,
    ),
    Refused(
        "a model that makes its logits without running its output embedding",
        "logit rule unknown: …, but its output embedding runs 0 times a pass",
        lambda _: load(never_read()),
        ModelError,
    ),
    Refused(
        "a model with several residual streams side by side",
        "a block must put out one residual stream, (1, 4, 32) for 4 tokens, and block 0 of "
        "Gemma3nForCausalLM puts out (4, 1, 4, 32): steering such a model is not defined here",
        lambda _: load(small_architectures.build("gemma3n_text")),
        ModelError,
    ),
    Refused(
        "a model that runs its blocks in rounds",
        "the blocks of HrmTextForCausalLM must run once a pass, in order, and its 3 run as "
        "0, 1, 2, 0, 1, 2, 0, 1, …: steering a model that runs its blocks again and again is not "
        "defined here",
        lambda _: load(small_architectures.build("hrm_text"), blocks="model.L_module.layers"),
        ModelError,
    ),
    Refused(
        "`--blocks` naming the blocks of an image encoder",
        "the blocks of Gemma3ForConditionalGeneration must run once a pass, in order, and its 1 "
        "run as none: they are not the decoder blocks; name those with --blocks PATH",
        lambda _: load(tiny.model("gemma3-multimodal"), blocks="model.vision_tower.encoder.layers"),
        ModelError,
    ),
    Refused(
        "`--blocks` naming what is no list of modules",
        "--blocks must name a module list, got 'model.layer'; there are: model.layers (3)",
        lambda _: load(tiny.model(), blocks="model.layer"),
        ModelError,
    ),
    Refused(
        "a model with two lists of as many modules as there are blocks",
        "the decoder blocks of Twins must be the one module list of length 3, found one (3), "
        "two (3); if one of these holds them, name it with --blocks PATH",
        lambda _: find_blocks(Twins()),
        ModelError,
    ),
    Refused(
        "a text with a token that the tokenizer knows and the model does not",
        "token ids must be below 20, the rows of LlamaForCausalLM's embedding, got … ('stone') in "
        "'a stone'; its tokenizer knows more tokens than it does: give the tokenizer that it was "
        "trained with",
        lambda _: encode_text(without_room(), "a stone"),
        ModelError,
    ),
    Refused(
        "a text longer than a context that the model calls `max_seq_len`",
        "a text must fit the model's context of 128 tokens, got 200: …; shorten it or split it",
        lambda _: encode_text(load(small_architectures.build("mpt")), "stone " * 200),
        InputError,
    ),
    Refused(
        "replies of a model that transformers cannot generate from",
        "LlamaForCausalLM must be able to reply, and transformers' generate fails for it: "
        "no generation here",
        lambda _: reply(mute()),
        ModelError,
    ),
    Refused(
        "`--positions last` on a model that keeps no cache while it generates",
        "positions must be all for a model that reads its whole reply again for every token, as "
        "OpenAIGPTLMHeadModel does, got last: …; use --positions all",
        lambda _: reply(load(small_architectures.build("openai-gpt")), "last"),
        ModelError,
    ),
]


@each(REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(row, tmp_path):
    row.check(tmp_path)
