"""calibrate serve: many clients, one batch, and each gets what `calibrate generate` replies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from types import SimpleNamespace

import openai
import pytest
import tiny
import torch
from patience import PATIENCE
from serving_fixtures import saved, serving, until
from test_cli import run

from calibrate.common.errors import InputError, ModelError, VerificationFailed
from calibrate.common.settings import Sampling
from calibrate.engine.generation import sample
from calibrate.engine.running import Ongoing, RunningReplies
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.pipelines.serving import needed
from calibrate.pipelines.serving.catalogue import Catalogue, Served, open_catalogue

pytestmark = pytest.mark.slow

PROMPTS = ["the house", "sun and rain with the river road", "a stone walks"]
STRENGTHS = [None, 0.0, 2.0, -1.0, 0.5]


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    """The model, and its calibration under two names."""
    return saved(tmp_path_factory.mktemp("served"), finished, "bright", "again")


@pytest.fixture(scope="module")
def server(places):
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(
            patch,
            [places / "bright", places / "again"],
            model=str(places / "model"),
            most_running=8,
            most_waiting=200,
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def generated(server, prompt, strength, seed, tokens):
    """What `calibrate generate` replies."""
    loaded, config = server.catalogue.loaded, server.catalogue.calibrations[0].config
    at = config.intervention.strength if strength is None else strength
    encoded = [encode_prompt(loaded, prompt)]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=tokens)  # the calibration's
    with preserving_model_state(loaded), config.steer(loaded, at):
        return sample(loaded, encoded, sampling, seed)[0].text


def test_fifty_clients_at_once_get_what_generate_replies(server, client):
    def ask(k):
        asked = {
            "model": "bright" if k % 2 else "again",
            "messages": [{"role": "user", "content": PROMPTS[k % 3]}],
            "max_tokens": 4 + k % 9,
            "seed": k,
        }
        extra = {"strength": STRENGTHS[k % 5]} if STRENGTHS[k % 5] is not None else {}
        if k % 4:
            reply = client.chat.completions.create(**asked, extra_body=extra)
            return reply.choices[0].message.content
        stream = client.chat.completions.create(**asked, extra_body=extra, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(ask, range(50)))
    expected = [
        generated(server, PROMPTS[k % 3], STRENGTHS[k % 5], k, 4 + k % 9) for k in range(50)
    ]
    assert replies == expected
    assert len(set(replies)) > 10


def test_a_plain_reply_a_concept_and_a_strength_are_told_apart(server):
    name = server.catalogue.loaded.name
    concept = server.catalogue.calibrations[0].config.concept.name
    say = {"messages": [{"role": "user", "content": "the house"}], "seed": 1, "max_tokens": 8}
    _, plain = server.post({**say, "model": name})
    _, steered = server.post({**say, "model": name, "concept": concept, "strength": 3.0})
    assert (plain["strength"], plain["concept"]) == (0.0, None)
    assert (steered["strength"], steered["concept"]) == (3.0, concept)
    texts = [each["choices"][0]["message"]["content"] for each in (plain, steered)]
    assert texts == [generated(server, "the house", at, 1, 8) for at in (0.0, 3.0)]


def test_several_replies_and_a_stop(client):
    several = client.chat.completions.create(
        model="bright", messages=[{"role": "user", "content": "the house"}], n=3, max_tokens=6,
        seed=0,
    )  # fmt: skip
    texts = [choice.message.content for choice in several.choices]
    assert len({*texts}) == 3
    assert several.usage.completion_tokens <= 18
    word = texts[0].split()[2]
    cut = client.chat.completions.create(
        model="bright", messages=[{"role": "user", "content": "the house"}], max_tokens=6,
        seed=0, stop=[word],
    )  # fmt: skip
    assert cut.choices[0].message.content == texts[0][: texts[0].index(word)].strip()
    assert cut.choices[0].finish_reason == "stop"


def test_a_stream_ends_with_what_it_took(client):
    stream = client.chat.completions.create(
        model="bright", messages=[{"role": "user", "content": "the house"}], max_tokens=5,
        stream=True, stream_options={"include_usage": True}, n=2,
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens <= 10
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert sum(end is not None for end in ends) == 2


@pytest.mark.parametrize("strength", [0.0, 2.5])
def test_completions_are_scored_as_the_model_says(strength, server, client):
    loaded, config = server.catalogue.loaded, server.catalogue.calibrations[0].config
    answer = client.completions.create(
        model="bright", prompt=PROMPTS, max_tokens=1, echo=True, logprobs=2, temperature=0,
        extra_body={"strength": strength},
    )  # fmt: skip
    for text, choice in zip(PROMPTS, answer.choices, strict=True):
        assert choice.text.startswith(text)
        ids = loaded.tokenizer(text)["input_ids"]
        with preserving_model_state(loaded), config.steer(loaded, strength):
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0]
        expected = logits.log_softmax(-1)
        got = choice.logprobs.token_logprobs
        assert got[0] is None
        assert got[1 : len(ids)] == pytest.approx(
            expected[torch.arange(len(ids) - 1), ids[1:]].tolist(), abs=1e-4
        )
        assert got[len(ids)] == pytest.approx(float(expected[-1].max()), abs=1e-4)
        assert max(choice.logprobs.top_logprobs[1].values()) == pytest.approx(
            float(expected[0].max()), abs=1e-4
        )


def test_a_text_alone_can_be_scored_and_given_as_tokens(server, client):
    ids = server.catalogue.loaded.tokenizer("the house")["input_ids"]
    asked = {"model": "bright", "max_tokens": 0, "echo": True, "logprobs": 1}
    by_ids, by_text = (client.completions.create(prompt=p, **asked) for p in (ids, "the house"))
    assert by_ids.choices[0].logprobs == by_text.choices[0].logprobs
    assert len(by_ids.choices[0].logprobs.tokens) == len(ids)


SAY = {"messages": [{"role": "user", "content": "the house"}]}
UNSERVED = [
    ({**SAY, "model": "brigt"}, 404, "did you mean bright"),
    ({**SAY, "concept": "gloom"}, 400, "concept must be one of"),
    ({**SAY, "tools": []}, 400, "tools is not served"),
    ({**SAY, "frequency_penalty": 0.5}, 400, "frequency_penalty is not served"),
    ({**SAY, "logit_bias": {"5": 3}}, 400, "logit_bias is not served"),
    ({**SAY, "logprobs": True}, 400, "logprobs"),
    ({**SAY, "n": 1000}, 400, "n:"),
    ({**SAY, "temperature": -1}, 400, "temperature:"),
    ({**SAY, "top_p": 0}, 400, "top_p:"),
    ({**SAY, "max_tokens": 4000}, 400, "must fit the context"),
    ({**SAY, "max_tokens": 0}, 400, "max_tokens may be from 1"),
    ({**SAY, "stop": [""]}, 400, "none of them empty"),
    ({**SAY, "stop": list("abcdef")}, 400, "at most 4"),
    ({"messages": []}, 400, "messages:"),
    ({"messages": [{"role": "assistant", "content": "so"}]}, 400, "in turn"),
    ({"messages": [*SAY["messages"], *SAY["messages"]]}, 400, "in turn"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, "at least one token"),
    ({"messages": [{"role": "user", "content": "the " * 200}]}, 400, "must fit"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must be text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
    (b'{"messages": [{"role": "user", "content": "a"}], "strength": NaN}', 400, "finite number"),
    (b'{"messages": [{"role": "user", "content": "a"}], "strength": 1e999}', 400, "strength"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
    ({"prompt": "a" * (2 << 20)}, 413, "at most 1048576 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "said"), UNSERVED)
def test_what_cannot_be_served_is_refused_with_the_reason(body, status, said, server):
    got, facts = server.post(body)
    assert got == status
    assert said in facts["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": []}, "from 1 to 64"),
        ({"prompt": ""}, "from 1 to 128 tokens, got 0"),
        ({"prompt": [5] * 200, "max_tokens": 0, "echo": True}, "from 1 to 128 tokens, got 200"),
        ({"prompt": [10**6]}, "token ids must be from 0"),
        ({"prompt": [-1]}, "token ids must be from 0"),
        ({"prompt": ["a"] * 65}, "from 1 to 64"),
        ({"prompt": "a", "max_tokens": 0}, "with echo alone"),
        ({"prompt": "a", "stream": True, "logprobs": 1}, "not streamed"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": {"a": 1}}, "prompt"),
    ],
)
def test_completions_too_are_refused_with_the_reason(body, said, server):
    status, facts = server.post(body, "/v1/completions")
    assert status == 400
    assert said in facts["error"]["message"]


def test_no_web_page_of_another_origin_gets_in(server):
    body = json.dumps(SAY).encode()
    post = "POST", "/v1/chat/completions", body
    assert server.ask("GET", "/healthz", headers={"Host": "evil.example"})[0] == 400
    assert server.ask(*post, headers={"Content-Type": "text/plain"})[0] == 415
    status, headers, _ = server.ask(
        "OPTIONS",
        "/v1/chat/completions",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert "default-src 'none'" in server.ask("GET", "/")[1]["Content-Security-Policy"]


def test_only_this_machine_is_served_unless_asked(server):
    assert server.address.startswith("http://127.0.0.1:")


def test_a_monitor_sees_what_is_done(server, client):
    before = server.ask("GET", "/metrics")[2]
    server.post({**SAY, "model": "again", "max_tokens": 3, "seed": 0})
    after = server.ask("GET", "/metrics")[2]

    def count(text):
        found = re.search(r'calibrate_reply_tokens_total{model="again"} (\S+)', text)
        return float(found[1]) if found else 0.0

    assert 1 <= count(after) - count(before) <= 3
    assert 'calibrate_requests_total{route="/v1/chat/completions",status="200"}' in after
    status, _, health = server.ask("GET", "/healthz")
    assert (status, health) == (200, {"status": "ok", "running": 0, "waiting": 0})
    assert [model.id for model in client.models.list()] == list(server.catalogue.names)


def test_a_full_queue_refuses_and_serves_again(places, monkeypatch):
    with serving(
        monkeypatch, [places / "bright"], model=str(places / "model"), most_running=1,
        most_waiting=2,
    ) as server:  # fmt: skip
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
        gate, scheduler = threading.Event(), server.scheduler
        until(scheduler.do(lambda: gate.wait(PATIENCE)).running)

        def ask(_):
            try:
                client.chat.completions.create(model="bright", max_tokens=2, **SAY)
            except openai.RateLimitError as refused:
                return refused.response.headers["retry-after"]
            return "served"

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, k) for k in range(4)]
            until(lambda: any(each.done() for each in asked) and scheduler.waiting == 3)
            gate.set()
            assert sorted(each.result() for each in asked) == ["1", "served", "served", "served"]
        assert server.post({**SAY, "max_tokens": 2})[0] == 200


def test_who_hangs_up_while_waiting_frees_the_place(places, monkeypatch):
    with serving(
        monkeypatch, [places / "bright"], model=str(places / "model"), most_running=1,
        most_waiting=2,
    ) as server, ThreadPoolExecutor(1) as pool:  # fmt: skip
        gate, scheduler = threading.Event(), server.scheduler
        until(scheduler.do(lambda: gate.wait(PATIENCE)).running)
        waiting = [HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE) for _ in range(3)]
        for connection in waiting:
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(SAY),
                {"Content-Type": "application/json"},
            )
        until(lambda: scheduler.waiting == 3)
        for connection in waiting:
            connection.close()
        counted = "calibrate_disconnected_total 3.0"
        until(lambda: counted in server.ask("GET", "/metrics")[2])
        asked = pool.submit(server.post, {**SAY, "max_tokens": 2})
        until(lambda: asked.done() or scheduler.waiting == 1)
        gate.set()
        assert asked.result()[0] == 200


def test_a_request_that_can_never_fit_is_refused_for_good(places, monkeypatch):
    with serving(
        monkeypatch, [places / "bright"], model=str(places / "model"), most_running=1,
        most_waiting=2,
    ) as server:  # fmt: skip
        asked = {"prompt": ["a", "b"], "n": 2, "max_tokens": 2}
        status, facts = server.post(asked, "/v1/completions")
        assert status == 400
        assert facts["error"]["message"] == (
            "a request must have at most 3 replies, n to each prompt, got 4; send it in parts, or "
            "serve with a larger --queue"
        )
        status, facts = server.post({**asked, "n": 1}, "/v1/completions")
        assert (status, len(facts["choices"])) == (200, 2)


def test_who_hangs_up_frees_the_place(places, monkeypatch):
    with serving(monkeypatch, [places / "bright"], model=str(places / "model")) as server:
        gone, seen = threading.Event(), []
        begin, step = RunningReplies.begin, RunningReplies.step

        def patient(replies):
            """Past its first tokens no reply goes on before its client is gone."""
            found = step(replies)
            if any(len(reply.ids) == 4 for reply in found):
                gone.wait(PATIENCE)
            return found

        monkeypatch.setattr(RunningReplies, "step", patient)
        monkeypatch.setattr(
            RunningReplies, "begin", lambda all_, new: (seen.extend(new), begin(all_, new))
        )
        monkeypatch.setattr(Ongoing, "is_over", lambda reply, _: len(reply.ids) >= reply.most)
        for stream in (True, False):
            gone.clear()
            connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            body = json.dumps({**SAY, "max_tokens": 100, "stream": stream, "stop": ["</s>"]})
            connection.request(
                "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            until(lambda stream=stream: len(seen) == 2 - stream)
            connection.close()
            counted = f"calibrate_disconnected_total {1.0 + (not stream)}"
            until(lambda counted=counted: counted in server.ask("GET", "/metrics")[2])
            gone.set()
            until(lambda: not server.scheduler.running)
        assert len(seen) == 2
        assert all(len(reply.ids) <= 4 for reply in seen)


def test_what_goes_wrong_ends_the_replies_under_way_and_no_others(places, monkeypatch, capsys):
    with serving(monkeypatch, [places / "bright"], model=str(places / "model")) as server:

        def broken(self, replies):
            raise RuntimeError("secret details")

        with monkeypatch.context() as patch:
            patch.setattr(RunningReplies, "begin", broken)
            status, facts = server.post(SAY)
            assert status == 500
            assert facts["error"]["message"] == "RuntimeError while replying"
            _, headers, _ = server.ask("POST", "/v1/chat/completions", SAY)
            assert headers["X-Content-Type-Options"] == "nosniff"
            counted = 'calibrate_requests_total{route="/v1/chat/completions",status="500"} 2.0'
            assert counted in server.ask("GET", "/metrics")[2]
            assert "RuntimeError: secret details" in capsys.readouterr().err
        _, facts = server.post({**SAY, "seed": 3, "max_tokens": 6})
        reply = facts["choices"][0]["message"]["content"]
        assert reply == generated(server, "the house", None, 3, 6)


def test_a_reply_that_goes_wrong_leaves_no_sibling_for_nobody(places, monkeypatch):
    with serving(
        monkeypatch, [places / "bright"], model=str(places / "model"), most_running=1
    ) as server:
        answered, begun, begin = threading.Event(), [], RunningReplies.begin

        def failing(self, replies):
            begun.extend(replies)
            if len(begun) == 1:
                raise RuntimeError("the first one fails")
            answered.wait(PATIENCE)
            begin(self, replies)

        monkeypatch.setattr(RunningReplies, "begin", failing)
        assert server.post({**SAY, "n": 4, "max_tokens": 2})[0] == 500
        answered.set()
        assert server.post({**SAY, "max_tokens": 2})[0] == 200
        assert len(begun) <= 3  # that one, its sibling that was next, and the other request's
        assert "calibrate_disconnected_total 0.0" in server.ask("GET", "/metrics")[2]


@pytest.fixture(scope="module")
def two_concepts(finished):
    """Calibrations of two concepts, as they are chosen among."""
    config = finished.result.config
    concept = config.concept.model_copy(update={"name": "evil"})
    evil = config.model_copy(update={"concept": concept})
    named = (Served("joy", config, None), Served("dark", evil, None))
    return Catalogue(SimpleNamespace(name="plain"), named)


@pytest.mark.parametrize(
    ("asked", "name", "place"),
    [
        ((None, None), "joy", 0),
        ((None, "evil"), "dark", 1),
        ((None, "bright"), "joy", 0),
        (("dark", None), "dark", 1),
        (("dark", "evil"), "dark", 1),
        (("plain", "evil"), "plain", 1),
    ],
)
def test_the_answer_names_what_steers_it(asked, name, place, two_concepts):
    choice = two_concepts.choose(*asked, None)
    assert choice.name == name
    assert choice.served is two_concepts.calibrations[place]


def test_a_calibration_with_anothers_concept_is_refused(two_concepts):
    with pytest.raises(InputError, match="'joy' steers bright, got the concept 'evil'"):
        two_concepts.choose("joy", "evil", None)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_slider_reaches_the_calibrated_strength(factor, finished):
    config, value = finished.result.config, SimpleNamespace(value=0.1)
    calibrated = config.intervention.strength
    point = SimpleNamespace(
        budget=0.1, strength=factor * calibrated, delta_ce=value, upper=0.1, presence=value
    )
    frontier = SimpleNamespace(points=[point], law=(0.0, 1.0, 0.0, 1.0))
    end = Served("bright", config, frontier).facts()["end"]
    assert end == pytest.approx(max(factor, 1.0) * calibrated)


def test_a_model_that_only_generate_can_serve_is_served(places, monkeypatch):

    def fails(*_):
        raise RuntimeError("no such loop")

    monkeypatch.setattr("calibrate.engine.capabilities.by_own_loop", fails)
    with (
        serving(monkeypatch, [places / "bright"], model=str(places / "model")) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        asked = [(PROMPTS[k % 3], STRENGTHS[k % 5]) for k in range(6)]

        def ask(k):
            prompt, strength = asked[k]
            body = {"messages": [{"role": "user", "content": prompt}], "seed": k, "max_tokens": 6}
            body |= {} if strength is None else {"strength": strength}
            return server.post(body)[1]["choices"][0]["message"]["content"]

        replies = list(pool.map(ask, range(6)))
        assert replies == [generated(server, *each, k, 6) for k, each in enumerate(asked)]


def test_only_what_steers_as_recorded_is_served(places, tmp_path, finished):
    other = tiny.model("gpt2")
    weight = other.transformer.h[-1].mlp.c_proj.weight.data
    weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    other.save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(VerificationFailed, match="bright cannot be served"):
        open_catalogue([places / "bright"], str(tmp_path / "other"))
    with pytest.raises(InputError, match="'bright' comes twice"):
        open_catalogue([places / "bright"] * 2, str(places / "model"))
    config = finished.result.config
    model = replace(config.model, num_layers=4)
    shutil.copytree(places / "bright", tmp_path / "deeper")
    files = config.model_copy(update={"model": model}).files()
    (tmp_path / "deeper" / "steering.json").write_bytes(files["steering.json"])
    with pytest.raises(InputError, match="must share model and prompts, and deeper"):
        open_catalogue([places / "bright", tmp_path / "deeper"], str(places / "model"))


def test_the_model_is_loaded_as_it_is_asked_for(places, finished):
    loaded = open_catalogue(
        [places / "bright"], str(places / "model"), blocks="transformer.h", dtype="auto"
    ).loaded
    assert loaded.blocks is loaded.model.transformer.h
    with pytest.raises(ModelError, match=r"no\.such\.part"):
        open_catalogue([places / "bright"], str(places / "model"), blocks="no.such.part")
    with pytest.raises(VerificationFailed, match=r"precision must be float32, .* got bfloat16"):
        open_catalogue([places / "bright"], str(places / "model"), dtype="bfloat16")


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def started(command):
    """A process, and the lines that it prints; it ends with the `with`, or where it takes long."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    patience = threading.Timer(PATIENCE, process.kill)
    patience.start()
    try:
        yield process
    finally:
        patience.cancel()
        process.kill()
        process.communicate()


def told(process):
    """The JSON that a process prints first."""
    lines = ""
    for line in process.stdout:
        lines += line
        if "}" in line:
            return json.loads(lines)
    raise AssertionError(f"the server ended, having said {lines!r}")


def test_a_kill_and_a_restart_lose_nothing(places):
    before = digests(places)
    command = [
        sys.executable, "-c", "from calibrate.cli import main; main()", "serve", "--json", "--port",
        "0", "--model", str(places / "model"), str(places / "bright"),
    ]  # fmt: skip
    for end in (signal.SIGKILL, signal.SIGINT):
        with started(command) as process:
            port = int(told(process)["address"].rsplit(":", 1)[1])
            connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request(
                "POST", "/v1/chat/completions", json.dumps({**SAY, "max_tokens": 3}),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            assert connection.getresponse().status == 200
            process.send_signal(end)
            assert process.wait(PATIENCE) == (0 if end is signal.SIGINT else -signal.SIGKILL)
    assert digests(places) == before


@pytest.mark.parametrize(("serves", "status"), [(False, 130), (True, 0)])
def test_ctrl_c_is_the_way_to_end_it_once_it_serves(serves, status, capsys, monkeypatch):
    def interrupted(*_, ready, **__):
        if serves:
            ready(SimpleNamespace(names=("bright",), calibrations=()), "http://127.0.0.1:1")
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.pipelines.serving.server.serve", interrupted)
    assert run(capsys, "serve", "bright")[0] == status


def test_a_port_that_is_taken_is_said(server, places):
    from calibrate.pipelines.serving.server import serve

    with pytest.raises(InputError, match="choose another --port"):
        serve([places / "bright"], port=server.port, model=str(places / "model"))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(needed, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(
        InputError, match=r"needs uvicorn: pip install 'steering-calibrate\[serve\]'"
    ):
        needed.require_serving()
