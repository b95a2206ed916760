"""Talking to a steered model, from whatever carries its steering."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tiny
import torch
from test_cli import run

from calibrate.common.errors import ArtefactError, InputError
from calibrate.common.settings import Sampling
from calibrate.deploy.chat import HELP, Chat, open_steered
from calibrate.deploy.export import export
from calibrate.engine.generation import sample
from calibrate.engine.loading import load_model
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt

IDS = [7, 12, 20, 9, 30]


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    """The model, and the same config in a directory, in an adapter, and folded."""
    folder = tmp_path_factory.mktemp("places")
    model, tokenizer = tiny.model("gpt2"), tiny.tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = finished.result.config
    loaded = load_model(model, tokenizer)
    export(config, "peft", folder / "adapter", loaded)
    export(config, "folded", folder / "folded", loaded)
    finished.result.save(folder / "directory")
    return folder


def log_probs(opened, strength):
    with preserving_model_state(opened.loaded), opened.at(strength):
        logits = opened.loaded.model(input_ids=torch.tensor([IDS])).logits[0, -1]
    return torch.log_softmax(logits, -1).numpy()


@pytest.mark.parametrize("place", ["directory", "adapter", "folded"])
def test_every_strength_means_the_same_wherever_it_comes_from(place, places, finished):
    config = finished.result.config
    base = tiny.model("gpt2")
    block = base.transformer.h[config.intervention.layer]
    model = None if place == "folded" else str(places / "model")
    with open_steered(places / place, model) as opened:
        for strength in (0.0, None, 2.0, -1.0):
            shift = config.intervention.strength if strength is None else strength
            with tiny.hand_written_hook(block, shift * config.steering_vector.values):
                logits = base(input_ids=torch.tensor([IDS])).logits[0, -1]
            expected = torch.log_softmax(logits, -1).numpy()
            assert log_probs(opened, strength) == pytest.approx(expected, abs=1e-4)


def test_a_folded_checkpoint_is_steered_in_no_other_model(places):
    with (
        pytest.raises(
            InputError,
            match="is a folded checkpoint, the model itself, so that there is no --model",
        ),
        open_steered(places / "folded", str(places / "model")),
    ):
        pass


def test_replies_stream_and_become_history(places):
    with open_steered(places / "directory", str(places / "model")) as opened:
        talk = Chat(opened, Sampling(1.0, 1.0, 12), strength=0.0)
        pieces = []
        with preserving_model_state(opened.loaded):
            reply = talk.reply("sun laugh the road", pieces.append)
            talk.reply("rain mud", pieces.append)
        assert len(pieces) > 2
        assert "".join(pieces).startswith(reply)
        assert [asked for asked, _ in talk.history] == ["sun laugh the road", "rain mud"]
        assert talk.history[0][1] == reply


def test_a_strong_push_is_heard_in_the_replies(places):
    with open_steered(places / "directory", str(places / "model")) as opened:
        shares = []
        for strength in (-20.0, 20.0):
            talk = Chat(opened, Sampling(1.0, 1.0, 24), strength)
            with preserving_model_state(opened.loaded):
                torch.manual_seed(0)
                words = " ".join(talk.reply(p, lambda _: None) for p in tiny.prompts(4)).split()
            shares.append(np.mean([word in tiny.BRIGHT for word in words]))
        assert shares[1] > shares[0] + 0.3


def test_what_no_longer_fits_is_forgotten_oldest_first(places):
    with open_steered(places / "directory", str(places / "model")) as opened:
        talk = Chat(opened, Sampling(1.0, 1.0, 24), strength=0.0)
        with preserving_model_state(opened.loaded):
            for prompt in tiny.prompts(6):
                talk.reply(prompt, lambda _: None)
        asked = [prompt for prompt, _ in talk.history]
        assert asked == tiny.prompts(6)[-len(asked) :]
        assert 1 < len(asked) < 6


def test_replies_are_drawn_as_a_calibration_draws_them(places):
    """Neither by a model's own penalties nor by the library's 50 likeliest tokens."""
    with open_steered(places / "directory", str(places / "model")) as opened:
        model, said = opened.loaded.model, []
        model.generation_config.repetition_penalty = 50.0
        model.generation_config.top_k = 1
        talk = Chat(opened, Sampling(5.0, 1.0, 40), 0.0)
        with preserving_model_state(opened.loaded):
            for seed in range(8):
                torch.manual_seed(seed)
                said.append(talk.reply("sun laugh the road", lambda _: None))
                talk.history.clear()
        assert model.generation_config.repetition_penalty == 50.0
    assert len({*said}) == 8
    assert any(len(words.split()) > len({*words.split()}) for words in said)


def test_what_cannot_be_replied_to_is_refused_and_the_talk_goes_on(places):
    with open_steered(places / "directory", str(places / "model")) as opened:
        room = opened.loaded.context_length - 12
        talk = Chat(opened, Sampling(1.0, 1.0, 12), 0.0)
        with preserving_model_state(opened.loaded):
            with pytest.raises(InputError, match="must fit the model's context"):
                talk.reply("sun " * (room + 1), lambda _: None)
            talk.command("/strength 1e39")
            with pytest.raises(InputError, match=r"must be finite, got α = 1e\+39; give a smaller"):
                talk.reply("sun", lambda _: None)
            talk.command("/off")
            talk.reply("sun", lambda _: None)
        assert [asked for asked, _ in talk.history] == ["sun"]


def test_commands(places, finished):
    with open_steered(places / "directory", str(places / "model")) as opened:
        talk = Chat(opened, Sampling(), strength=0.3)
        assert talk.command("/strength -1.5") == "α = -1.5"
        assert talk.strength == -1.5
        assert talk.command("/off") == "α = +0"
        calibrated = finished.result.config.intervention.strength
        assert (
            talk.command("/concept") == f"bright (increased), calibrated at α = {calibrated:+.4g}"
        )
        with pytest.raises(InputError, match="/strength takes a number, got 'high'"):
            talk.command("/strength high")
        with pytest.raises(InputError, match="there is no /quiet; there are /strength"):
            talk.command("/quiet")


def test_a_budget_that_was_not_measured_is_spent_by_the_law(places, finished):
    config = finished.result.config
    for place, model in (("directory", "model"), ("folded", None)):
        with open_steered(places / place, model and str(places / model)) as opened:
            talk = Chat(opened, Sampling(), strength=0.0)
            said = talk.command(f"/budget {config.budget.limit}")
            assert said == f"α = {config.intervention.strength:+.4g}, verified: ΔCE at most " + (
                f"{config.measured.delta_ce.upper:.3g} nat"
            )
            said = talk.command("/budget 0.05")
            assert said == f"α = {talk.strength:+.4g} by the law of ΔCE, not measured"
            assert config.laws.cross_entropy.predict(talk.strength) == pytest.approx(0.05, rel=1e-3)


def test_what_a_folded_checkpoint_or_an_adapter_cannot_be_loaded_with_is_refused(places):
    for given, option in (({"model": "smollm2"}, "--model"), ({"revision": "abc"}, "--revision")):
        with (
            pytest.raises(InputError, match=f"folded checkpoint, .* no {option} to choose, got"),
            open_steered(places / "folded", **given),
        ):
            pass
    with (
        pytest.raises(InputError, match="adapter, which PEFT puts on models that one process"),
        open_steered(places / "adapter", tensor_parallel=True),
    ):
        pass


def test_the_help_names_every_command_of_a_chat(capsys):
    _, out, _ = run(capsys, "chat", "--help")
    for command in re.findall(r"/\w+", HELP):
        assert command in out


def test_nothing_to_open_is_named(tmp_path):
    with (
        pytest.raises(ArtefactError, match=r"must hold a steering\.json"),
        open_steered(tmp_path),
    ):
        pass


def test_generate_draws_as_the_calibration_did(capsys, places):
    directory, model = places / "directory", str(places / "model")
    asked = ["--prompt", "the house", "--model", model, "--max-tokens", 12, "--seed", 3, "--json"]
    status, out, _ = run(capsys, "generate", directory, *asked)
    assert status == 0
    with open_steered(directory, model) as opened, preserving_model_state(opened.loaded):
        encoded = [encode_prompt(opened.loaded, "the house")]
        calibrations, usual = (
            sample(opened.loaded, encoded, sampling, 3, within=opened.at(0.0))[0].text
            for sampling in (Sampling(1.0, 1.0, 12), Sampling(max_new_tokens=12))
        )
    assert json.loads(out)["unsteered"] == calibrations != usual


def test_chat_draws_as_the_calibration_did(capsys, places, monkeypatch):
    drawn = []

    def noted(steered, sampling, strength):
        drawn.append(sampling)
        return Chat(steered, sampling, strength)

    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    monkeypatch.setattr("calibrate.deploy.chat.Chat", noted)
    run(capsys, "chat", places / "directory", "--model", places / "model", "--max-tokens", 8)
    assert drawn == [Sampling(1.0, 1.0, 8)]
