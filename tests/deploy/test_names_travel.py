"""What an export names is found from any folder, and adapters on a model are seen."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from refused import Refused, each
from test_cli import run
from test_export import LAYER, STRENGTH, config_for, log_probs, target
from test_never_destroys import state
from transformers import AutoModelForCausalLM

from calibrate.common.errors import ExportRefused
from calibrate.common.marks import sha256_of
from calibrate.deploy.export import export
from calibrate.deploy.export.adapter import residual_writer
from calibrate.deploy.export.adapters import merged
from calibrate.deploy.export.place import place_of
from calibrate.deploy.verify import open_model
from calibrate.engine.loading import load_model
from calibrate.models.converted import CONVERSION_VERSION
from calibrate.models.wheels import EMBEDDED


def saved(folder):
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def elsewhere(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def named(finished, tmp_path, monkeypatch):
    """A config of a model named by a relative path, and the model; the folder it is in."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    saved(home / "model")
    loaded = load_model("./model")
    return config_for(finished.result.config, loaded), loaded, home


def test_a_snippet_of_a_relative_path_runs_from_another_folder(named, tmp_path):
    config, loaded, home = named
    written = export(config, "snippet", "code", loaded)
    assert f"MODEL, STRENGTH = {str(home / 'model')!r}" in (home / "code/steer.py").read_text()
    assert written.serve == ("python code/steer.py 'A prompt'",)
    command = [sys.executable, str(home / "code" / "steer.py"), "sun laugh"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=elsewhere(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= set(tiny.VOCABULARY)


def test_an_adapter_of_a_relative_path_finds_its_base_from_another_folder(
    named, tmp_path, monkeypatch
):
    config, loaded, home = named
    export(config, "peft", "adapter", loaded)
    monkeypatch.chdir(elsewhere(tmp_path))
    model = AutoPeftModelForCausalLM.from_pretrained(home / "adapter")
    found = log_probs(model, config.reference.input_ids)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)


def test_the_harness_and_the_card_name_a_relative_path_in_full(named):
    config, loaded, home = named
    (serve,) = export(config, "lm-eval", "v.pt", loaded).serve
    assert f"pretrained={home / 'model'},dtype=float32,steer_path={home / 'v.pt'}" in serve
    export(config, "folded", "folded", loaded)
    assert f"\nbase_model: {home / 'model'}\n" in (home / "folded" / "README.md").read_text()
    facts = json.loads((home / "folded" / "config.json").read_text())
    assert facts["steering"]["base_model"] == str(home / "model")


def prepared(monkeypatch, tmp_path, entry):
    """A model cache that holds a model already, its root named by a relative path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", "cache")
    return saved(tmp_path / "cache" / "models" / entry)


def test_an_embedded_model_is_named_by_its_directory(monkeypatch, tmp_path):
    version = EMBEDDED["smollm2"].wheels[0].sha256[:16]
    place = prepared(monkeypatch, tmp_path, f"smollm2-{version}-{CONVERSION_VERSION}")
    assert place_of(load_model("smollm2")) == str(place)


def test_a_gguf_is_named_by_the_directory_it_was_converted_to(finished, monkeypatch, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF as converted before")
    digest = sha256_of(tmp_path / "m.gguf")
    place = prepared(monkeypatch, tmp_path, f"gguf-{digest[:16]}-{CONVERSION_VERSION}-whole")
    loaded = load_model("m.gguf")
    assert place_of(loaded) == str(place)
    config = config_for(finished.result.config, loaded)
    serve = export(config, "gguf", "v.gguf", loaded).serve
    assert serve[0] == f"llama-cli -m {tmp_path / 'm.gguf'} --control-vector v.gguf"
    export(config, "snippet", "code", loaded)
    assert repr(str(place)) in (tmp_path / "code" / "steer.py").read_text()


@pytest.mark.parametrize("name", ["org/model-7B", "gpt2"])
def test_a_hub_id_is_named_as_it_is(name, loaded):
    loaded.model.config._name_or_path = name
    assert place_of(loaded) == name


def test_a_model_of_the_hub_is_named_with_its_commit_and_precision(finished, loaded, tmp_path):
    loaded.model.config._name_or_path = "org/model-7B"
    base = config_for(finished.result.config, loaded)
    of_hub = replace(base.model, id="org/model-7B", revision="abc123", dtype="float32")
    config = base.model_copy(update={"model": of_hub})
    (serve, *_) = export(config, "lm-eval", tmp_path / "v.pt", loaded, check=False).serve
    assert "pretrained=org/model-7B,revision=abc123,dtype=float32,steer_path=" in serve
    export(config, "peft", tmp_path / "adapter", loaded)
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["revision"] == "abc123"
    export(config, "snippet", tmp_path / "code", loaded)
    asked = run_snippet(tmp_path / "code")
    assert asked == [{"revision": "abc123"}, {"revision": "abc123", "dtype": "float32"}]


def test_no_commit_is_named_of_another_place_than_the_configs(finished, loaded, tmp_path):
    loaded.model.config._name_or_path = "org/a-copy"
    base = config_for(finished.result.config, loaded)
    of_hub = replace(base.model, id="org/model-7B", revision="abc123")
    config = base.model_copy(update={"model": of_hub})
    export(config, "snippet", tmp_path / "code", loaded)
    assert [asked["revision"] for asked in run_snippet(tmp_path / "code")] == [None, None]


def run_snippet(folder):
    """What a snippet's own code asks `from_pretrained` for: tokenizer, then model."""
    asked = []

    def noted(_, **options):
        asked.append(options)
        if len(asked) == 2:
            raise Asked
        return tiny.tokenizer()

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("AutoTokenizer", "AutoModelForCausalLM"):
            patch.setattr(f"transformers.{kind}.from_pretrained", noted)
        with pytest.raises(Asked):
            runpy.run_path(str(folder / "steer.py"), run_name="__main__")
    return asked


class Asked(Exception):
    """Both were asked for."""


@pytest.mark.parametrize("name", ["", "./gone", "/nowhere/model", "a/b/c", "with space"])
def test_a_model_that_no_name_leads_to_is_said_to_need_one(name, finished, loaded, tmp_path):
    loaded.model.config._name_or_path = name
    assert place_of(loaded) is None
    config = config_for(finished.result.config, loaded)
    for format_name in ("lm-eval", "snippet"):
        serve = export(
            config, format_name, target(tmp_path, format_name), loaded, check=False
        ).serve
        assert "save the model with save_pretrained, and set MODEL" in serve[-1]
    export(config, "peft", tmp_path / "adapter", loaded, check=False)
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] is None


def test_the_command_line_names_the_model_in_full(
    capsys, named, finished, tiny_options, monkeypatch
):
    config, _, home = named
    (home / "joy").mkdir()
    for name, content in config.files().items():
        (home / "joy" / name).write_bytes(content)
    assert config.model.id == "./model"
    status, out, err = run(capsys, "export", "joy", "--format", "lm-eval", "--to", "v.pt")
    assert (status, err.count("calibrate:")) == (0, 0)
    assert f"pretrained={home / 'model'}," in out


# --- Adapters that the model carries ----------------------------------------------------------


def with_lora(model, **options):
    """The model wrapped by PEFT with an adapter that does something."""
    chosen = {
        "target_modules": ["down_proj", "q_proj"],
        "r": 2,
        "task_type": "CAUSAL_LM",
        **options,
    }
    wrapped = get_peft_model(model, LoraConfig(**chosen))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


@pytest.fixture
def adapter(tmp_path):
    """The directory of an adapter, its base beside it."""
    saved(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with_lora(base).save_pretrained(tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def carrying(how, adapter):
    if how == "directory":
        return load_model(str(adapter))
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    return load_model(PeftModel.from_pretrained(base, adapter), tiny.tokenizer())


@pytest.mark.parametrize("how", ["directory", "in memory"])
def test_folding_merges_the_adapter_that_a_model_carries(how, adapter, finished, tmp_path):
    loaded = carrying(how, adapter)
    config = config_for(finished.result.config, loaded)
    before = state(loaded.model)
    assert export(config, "folded", tmp_path / "folded", loaded).gap < 1e-4
    assert state(loaded.model) == before
    names = {path.name for path in (tmp_path / "folded").iterdir()}
    assert "model.safetensors" in names
    assert "adapter_config.json" not in names
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    found = log_probs(stock, config.reference.input_ids)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    with tiny.hand_written_hook(
        plain.model.layers[LAYER], STRENGTH * config.steering_vector.values
    ):
        other = log_probs(plain, config.reference.input_ids)[config.reference.token_ids]
    assert (other - torch.tensor(config.reference.log_probs)).abs().max() > 0.05


@pytest.mark.parametrize("how", ["directory", "in memory"])
@pytest.mark.parametrize("name", ["gguf", "easysteer", "lm-eval", "svec", "snippet"])
def test_other_formats_are_the_same_with_an_adapter(name, how, adapter, finished, tmp_path):
    loaded = carrying(how, adapter)
    config = config_for(finished.result.config, loaded)
    before = state(loaded.model)
    written = export(config, name, target(tmp_path, name), loaded)
    assert written.gap < 1e-4
    assert state(loaded.model) == before
    if name == "lm-eval":
        ((hookpoint, _),) = torch.load(tmp_path / "v.pt", weights_only=True).items()
        assert hookpoint == f"layers.{LAYER}"
    if name == "snippet":
        code = (tmp_path / "snippet" / "steer.py").read_text()
        assert "BLOCKS = 'model.layers'" in code
        assert (repr(str(adapter)) in code) == (how == "directory")
    if name in ("lm-eval", "snippet") and how == "in memory":
        assert "save the model, with its adapter, with save_pretrained" in written.serve[-1]


def test_an_adapters_directory_goes_through_the_command_line(
    capsys, adapter, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    loaded = load_model("adapter")
    config = config_for(finished.result.config, loaded)
    (tmp_path / "joy").mkdir()
    for name, content in config.files().items():
        (tmp_path / "joy" / name).write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = run(capsys, "export", "joy", "--format", "peft", "--to", "out")
    assert (status, out) == (2, "")
    assert "carries an adapter already; merge it" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run(capsys, "export", "joy", "--format", "folded", "--to", "out")[0] == 0


def wrapped(adapter_config):
    return load_model(get_peft_model(tiny.model(), adapter_config), tiny.tokenizer())


def export_peft_of_an_adapted_model(_folder):
    residual_writer(wrapped(LoraConfig(task_type="CAUSAL_LM", r=1)), 1, "peft")


def merge_whole_modules(folder):
    """Only where transformers put the adapter on: PEFT's own wrapper knows how."""
    saved(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    with_lora(base, modules_to_save=["norm"]).save_pretrained(folder / "adapter")
    tiny.tokenizer().save_pretrained(folder / "adapter")
    merged(load_model(str(folder / "adapter")))


def merge_a_prompt(_folder):
    loaded = wrapped(LoraConfig(task_type="CAUSAL_LM", r=1))
    model = get_peft_model(
        tiny.model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    merged(replace(loaded, model=model))


REFUSED = [
    Refused("export peft of a model that carries an adapter",
            "… carries an adapter already; merge it (merge_and_unload), save the result and "
            "calibrate that, or export folded, which merges both",
            export_peft_of_an_adapted_model, ExportRefused),
    Refused("export folded of a model whose adapter prepends to the prompt",
            "the adapter that … carries cannot be merged into its weights (…); export gguf or a "
            "snippet", merge_a_prompt, ExportRefused),
    Refused("export folded of an adapter's directory that replaces whole modules",
            "the adapter that … carries cannot be merged into its weights (…); export gguf or a "
            "snippet", merge_whole_modules, ExportRefused),
]  # fmt: skip


@each(REFUSED)
def test_adapters_that_do_not_go_together_are_refused(row, tmp_path):
    row.check(tmp_path)


def test_an_opened_model_is_what_the_config_was_made_on(named):
    config, _, home = named
    assert place_of(open_model(config)) == str(home / "model")
