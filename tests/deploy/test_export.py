"""Exports: the consumers' files reproduce the reference, or are refused with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import runpy
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import gguf
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GraniteConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)

from calibrate.artefact.config import vector_file
from calibrate.artefact.sections import SteeredBlockSection
from calibrate.common.errors import ArtefactError, ExportRefused, InputError, VerificationFailed
from calibrate.common.record import Reference
from calibrate.deploy.export import FORMATS, export
from calibrate.deploy.export.control_vector import read_directions
from calibrate.engine.loading import load_model

LAYER, STRENGTH = 1, 0.7
SEVERAL = (LAYER, LAYER + 1)
SITES = pytest.mark.parametrize("layers", [(LAYER,), SEVERAL], ids=["one block", "several"])
IDS = torch.tensor([[7, 12, 20, 9]])
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
MORE = {
    "qwen2": lambda: Qwen2Config(**tiny._common(**tiny.HEADS)),
    "mistral-full": lambda: MistralConfig(**tiny._common(**tiny.HEADS, sliding_window=None)),
    "granite-scaled": lambda: GraniteConfig(
        **tiny._common(num_key_value_heads=2, intermediate_size=48, residual_multiplier=0.22)
    ),
    "falcon-biased": lambda: tiny.FalconConfig(**tiny._common(bias=True)),
    "gemma": lambda: GemmaConfig(**tiny._common(**tiny.HEADS)),
    "mixtral": lambda: MixtralConfig(
        **tiny._common(**tiny.HEADS, num_local_experts=4, sliding_window=None)
    ),
    "opt-post-norm": lambda: OPTConfig(
        **tiny._common(ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False)
    ),
}
FOLDS = ("llama", "gpt2", "qwen2", "mistral-full", "gpt-neox", "falcon", "falcon-biased", "bloom",
         "opt", "phi", "granite", "granite-scaled")  # fmt: skip
NO_SLOT = ("qwen3", "gemma", "mistral")
POST_NORM = ("gemma2", "gemma3", "opt-post-norm")
FOUR = {"llama": 4, "gpt2": 4}  # so that a block follows those of SEVERAL
OTHERS = (*POST_NORM, "mixtral", "gemma3-multimodal")


@pytest.fixture(params=None)
def architecture(request):
    return request.param


@pytest.fixture
def loaded(architecture, monkeypatch):
    """A random model of an architecture, biases and norms random as well."""
    if architecture in MORE:
        monkeypatch.setitem(tiny.CONFIGS, architecture, MORE[architecture])
    return randomised(tiny.model(architecture, layers=FOUR.get(architecture)))


def randomised(model):
    """The model with random biases, since those from a config are zero, loaded."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return load_model(model, tiny.tokenizer())


def log_probs(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1)


def config_for(base, loaded, layers=(LAYER,), strength=STRENGTH, positions="all", recorded=None):
    """A config of random vectors, its reference made by hooks anyone would write.

    recorded: what the reference was made with, where that is something else: (the block of each
    vector, strength, last position only).
    """
    rng = np.random.default_rng(3)
    vectors = {layer: rng.normal(0, 0.5, loaded.hidden_size).astype(np.float32) for layer in layers}
    places, by, last = recorded or (layers, strength, positions == "last")
    ids = [7, 12, 20, 9, 30]
    recorded_at = zip(places, vectors.values(), strict=False)  # places may be fewer
    shifts = {layer: by * torch.from_numpy(values) for layer, values in recorded_at}
    with hooked(loaded, shifts, last):
        steered = log_probs(loaded.model, ids)
    unsteered = log_probs(loaded.model, ids)
    assert (steered - unsteered).abs().max() > 0.05
    top = steered.topk(10).indices
    file, keys = vector_file(vectors)
    vector = base.vector.model_copy(
        update={"sha256": hashlib.sha256(file).hexdigest(), "key": keys[layers[0]]}
    )
    done = base.intervention.model_copy(
        update={"layer": layers[0], "strength": strength, "positions": positions}
    )
    several = [
        SteeredBlockSection(layer=layer, key=keys[layer], norm=1.0, residual_norm=1.0)
        for layer in layers
    ]
    reference = Reference(
        input_ids=ids,
        token_ids=top.tolist(),
        log_probs=steered[top].tolist(),
        unsteered_log_probs=unsteered[top].tolist(),
    )
    changes = {"vector": vector, "intervention": done, "reference": reference}
    changes["interventions"] = several if len(layers) > 1 else None
    config = base.model_copy(update={**changes, "model": loaded.identity})
    return config.with_vector(file)


@contextmanager
def hooked(loaded, shifts, last=False):
    """Hooks anyone would write, each adding its shift after a block."""
    with ExitStack() as stack:
        for layer, shift in shifts.items():
            stack.enter_context(tiny.hand_written_hook(loaded.blocks[layer], shift, last))
        yield


@pytest.fixture
def layers():
    return (LAYER,)


@pytest.fixture
def config(finished, loaded, layers):
    return config_for(finished.result.config, loaded, layers)


def target(tmp_path, name):
    return tmp_path / {"gguf": "v.gguf", "lm-eval": "v.pt", "svec": "v.svec"}.get(name, name)


@SITES
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"], indirect=True)
def test_every_format_reproduces_the_reference_and_leaves_the_model_alone(
    name, loaded, config, tmp_path
):
    before = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    attributes = sorted(loaded.model.__dict__)
    written = export(config, name, target(tmp_path, name), loaded)
    assert written.gap < 1e-4
    assert written.path.exists()
    assert written.serve
    assert [path.name for path in tmp_path.iterdir()] == [written.path.name]
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert sorted(loaded.model.__dict__) == attributes
    assert not any(module._forward_hooks for module in loaded.model.modules())


@pytest.mark.parametrize("name", ["gguf", "folded", "easysteer", "lm-eval", "snippet"])
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_a_command_that_is_said_can_be_pasted_whatever_the_path(name, loaded, config, tmp_path):
    folder = tmp_path / "my folder; it's"
    written = export(config, name, target(folder, name), loaded)
    programs = ("llama-cli", "vllm", "lm_eval", "python")
    (said,) = [line for line in written.serve if line.startswith(programs)]
    assert any(str(written.path) in word for word in shlex.split(said))


@SITES
@pytest.mark.parametrize("architecture", FOLDS, indirect=True)
def test_a_folded_checkpoint_is_exact_in_stock_transformers(loaded, config, tmp_path):
    export(config, "folded", tmp_path / "folded", loaded)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    found = log_probs(stock, config.reference.input_ids)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)
    assert stock.config.steering["strength"] == STRENGTH
    card = (tmp_path / "folded" / "README.md").read_text()
    assert "steered towards bright" in card
    again = json.loads((tmp_path / "folded" / "steering.json").read_text())
    assert again["intervention"]["strength"] == STRENGTH


@pytest.mark.parametrize("architecture", ["qwen2", "mistral-full"], indirect=True)
def test_what_is_llama_but_for_its_flags_is_relabelled(loaded, config, tmp_path):
    export(config, "folded", tmp_path / "folded", loaded)
    facts = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert facts["architectures"] == ["LlamaForCausalLM"]
    assert facts["mlp_bias"] is True


@SITES
@pytest.mark.parametrize("architecture", [*FOLDS, *NO_SLOT], indirect=True)
def test_peft_puts_the_adapter_on(loaded, config, tmp_path):
    assert export(config, "peft", tmp_path / "adapter", loaded).gap < 1e-4
    from peft import PeftModel

    model = PeftModel.from_pretrained(loaded.model, tmp_path / "adapter")
    found = log_probs(model, config.reference.input_ids)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)


@pytest.mark.parametrize("architecture", NO_SLOT, indirect=True)
def test_no_slot_for_a_bias_is_refused(loaded, config, tmp_path):
    with pytest.raises(ExportRefused, match=r"needs a bias at .*down_proj, but the stock .* none"):
        export(config, "folded", tmp_path / "folded", loaded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["folded", "peft"])
@pytest.mark.parametrize("architecture", POST_NORM, indirect=True)
def test_a_norm_after_the_projections_is_refused(name, loaded, config, tmp_path):
    with pytest.raises(ExportRefused, match="a norm stands between its projections and the res"):
        export(config, name, tmp_path / "out", loaded)


@pytest.mark.parametrize("name", ["folded", "peft"])
@pytest.mark.parametrize("architecture", ["mixtral"], indirect=True)
def test_a_mixture_of_experts_is_refused(name, loaded, config, tmp_path):
    with pytest.raises(ExportRefused, match="experts are chosen token by token"):
        export(config, name, tmp_path / "out", loaded)


@pytest.mark.parametrize(
    "architecture", [*POST_NORM, "mixtral", "gemma3-multimodal"], indirect=True
)
@pytest.mark.parametrize("name", ["gguf", "easysteer", "lm-eval", "svec", "snippet"])
def test_what_cannot_be_folded_still_has_other_formats(name, loaded, config, tmp_path):
    assert export(config, name, target(tmp_path, name), loaded).gap < 1e-4


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
@pytest.mark.parametrize("name", FORMATS)
def test_the_last_position_is_expressed_or_refused(name, finished, loaded, tmp_path):
    config = config_for(finished.result.config, loaded, positions="last")
    if name == "snippet":
        assert export(config, name, target(tmp_path, name), loaded).gap < 1e-4
    else:
        with pytest.raises(ExportRefused, match="steers every position, but this strength was"):
            export(config, name, target(tmp_path, name), loaded)


@pytest.mark.parametrize("layers", [(0,), (0, 2)])
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_block_0_has_no_direction_in_a_control_vector(finished, layers, loaded, tmp_path):
    config = config_for(finished.result.config, loaded, layers)
    with pytest.raises(ExportRefused, match="counts blocks from 1, so block 0 has no direction"):
        export(config, "gguf", tmp_path / "v.gguf", loaded)
    assert export(config, "easysteer", tmp_path / "e", loaded).gap < 1e-4


@pytest.mark.parametrize("layers", [(3,), (1, 3)])
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_nothing_enters_after_the_last_block_in_a_svec(loaded, config, tmp_path):
    with pytest.raises(ExportRefused, match="nothing can be added after the last, block 3"):
        export(config, "svec", tmp_path / "v.svec", loaded)


class Leash(torch.nn.Module):
    """A block as activation-steering wraps it: what is filed under it is added to its input."""

    def __init__(self, block, shift):
        super().__init__()
        self.block, self.shift = block, shift

    def forward(self, hidden_states, *args, **kwargs):
        return self.block(hidden_states + self.shift, *args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)


@SITES
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_a_svec_steers_what_leashes_blocks_as_it_was_calibrated(layers, loaded, config, tmp_path):
    written = export(config, "svec", tmp_path / "v.svec", loaded)
    directions = json.loads((tmp_path / "v.svec").read_text())["directions"]
    assert list(map(int, directions)) == [layer + 1 for layer in layers]
    assert all(f"behavior_layer_ids={[n + 1 for n in layers]}" in line for line in written.serve)
    for name, direction in directions.items():
        loaded.blocks[int(name)] = Leash(loaded.blocks[int(name)], torch.tensor(direction))
    found = log_probs(loaded.model, config.reference.input_ids)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)


WRONG = {
    "off by one": ((LAYER + 1,), STRENGTH, False),
    "opposite sign": ((LAYER,), -STRENGTH, False),
    "other scale": ((LAYER,), 1.1 * STRENGTH, False),
    "last position only": ((LAYER,), STRENGTH, True),
}
WRONG_SEVERAL = {
    "off by one": ((LAYER - 1, LAYER), STRENGTH, False),
    "opposite sign": (SEVERAL, -STRENGTH, False),
    "one block missing": ((LAYER,), STRENGTH, False),
    "blocks swapped": (SEVERAL[::-1], STRENGTH, False),
}


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("layers", "wrong"),
    [
        *(((LAYER,), wrong) for wrong in WRONG.values()),
        *((SEVERAL, wrong) for wrong in WRONG_SEVERAL.values()),
    ],
    ids=[*WRONG, *(f"several, {wrong}" for wrong in WRONG_SEVERAL)],
)
def test_every_way_of_going_wrong_is_caught_and_nothing_is_kept(
    layers, wrong, name, finished, loaded, tmp_path
):
    """The consumer does one thing, and the reference was recorded with another."""
    config = config_for(finished.result.config, loaded, layers, recorded=wrong)
    with pytest.raises(VerificationFailed, match="must reproduce the reference"):
        export(config, name, target(tmp_path, name), loaded)
    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_hooks for module in loaded.model.modules())
    export(config, name, target(tmp_path, name), loaded, check=False)


SAYS_MORE = [
    'joy"""\nimport os\nos.mkdir("pwned")\n"""',
    "joy'); __import__('os').mkdir('pwned') #",
    *("{model}", "joy\\", "joy'\"\\"),
]


@pytest.mark.parametrize("name", SAYS_MORE)
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_no_name_is_run_as_code(name, loaded, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    concept = config.concept.model_copy(update={"name": name})
    named = {"concept": concept, "model": dataclasses.replace(config.model, id=name)}
    named = config.model_copy(update=named)
    export(named, "snippet", tmp_path / "code", loaded)
    assert not (tmp_path / "pwned").exists()
    assert export(named, "snippet", tmp_path / "pushed", loaded, published=True).gap < 1e-4
    assert not (tmp_path / "pwned").exists()
    found = runpy.run_path(str(tmp_path / "pushed" / "steer.py"))
    assert (found["MODEL"], found["CONCEPT"]) == (name, f"towards {name}")


@pytest.mark.parametrize("architecture", ["gpt2"], indirect=True)
def test_a_folded_card_is_valid_whatever_its_names(loaded, config, tmp_path):
    place = tmp_path / "mine: 'a' #1"
    place.mkdir()
    loaded.model.config._name_or_path = str(place)
    export(config, "folded", tmp_path / "folded", loaded)
    _, metadata, _ = (tmp_path / "folded" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata) == {"base_model": str(place), "tags": ["steering"]}


@SITES
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_a_control_vector_is_what_llama_cpp_wants(layers, loaded, config, tmp_path):
    export(config, "gguf", tmp_path / "v.gguf", loaded)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    text = {
        name: str(field.contents())
        for name, field in reader.fields.items()
        if field.types == [gguf.GGUFValueType.STRING]
    }
    assert text["general.architecture"] == "controlvector"
    assert text["controlvector.model_hint"] == "llama"
    assert text["glp.positions"] == "all"
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{n}" for n in layers]
    for tensor, vector in zip(reader.tensors, config.site.vectors, strict=True):
        assert tensor.tensor_type.name == "F32"
        expected = STRENGTH * vector.values.numpy()
        assert np.array(tensor.data) == pytest.approx(expected, abs=1e-6)


def test_what_is_no_control_vector_is_named(tmp_path):
    (tmp_path / "x.gguf").write_text("nothing")
    with pytest.raises(ArtefactError, match="must be a GGUF file"):
        read_directions(tmp_path / "x.gguf")


@pytest.mark.parametrize("architecture", ["gpt2"], indirect=True)
def test_the_harness_can_load_its_file_without_unpickling(loaded, config, tmp_path):
    export(config, "lm-eval", tmp_path / "v.pt", loaded)
    ((name, one),) = torch.load(tmp_path / "v.pt", weights_only=True).items()
    assert name == f"h.{LAYER}"
    assert set(one) == {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}
    with pytest.raises(ArtefactError, match=r"--to must end in \.pt"):
        export(config, "lm-eval", tmp_path / "v.bin", loaded)


@SITES
@pytest.mark.parametrize("architecture", ["llama", "gpt2"], indirect=True)
def test_the_harness_itself_reproduces_the_reference(loaded, config, tmp_path):
    harness = pytest.importorskip(
        "lm_eval.models.hf_steered", reason="needs lm-eval: pip install -e .[consumers]"
    )
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    export(config, "lm-eval", tmp_path / "v.pt", loaded)
    steered = harness.SteeredModel(
        str(tmp_path / "model"), str(tmp_path / "v.pt"), device="cpu", dtype="float32", batch_size=1
    )
    logits = steered._model_call(torch.tensor([config.reference.input_ids]))[0, -1]
    found = torch.log_softmax(logits.float(), -1)[config.reference.token_ids]
    assert found == pytest.approx(torch.tensor(config.reference.log_probs), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_the_snippet_runs_by_itself(loaded, config, tmp_path):
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    export(config, "snippet", tmp_path / "code", loaded)
    path = tmp_path / "code" / "steer.py"
    place = repr(str(tmp_path / "model"))
    path.write_text(path.read_text().replace("'LlamaForCausalLM'", place, 1))
    command = [sys.executable, str(path), "sun laugh"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= set(tiny.VOCABULARY)


@pytest.fixture
def snippet(loaded, config, tmp_path):
    """The snippet's functions, the folder of its model, and what a hand-written hook generates."""
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    export(config, "snippet", tmp_path / "code", loaded)
    with hooked(loaded, {one.layer: STRENGTH * one.values for one in config.site.vectors}):
        expected = loaded.model.generate(input_ids=IDS, **GREEDY)
    assert expected.tolist() != loaded.model.generate(input_ids=IDS, **GREEDY).tolist()
    path = tmp_path / "code" / "steer.py"
    spec = importlib.util.spec_from_file_location("steer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, tmp_path / "model", expected


@SITES
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_the_snippet_steers_nnsight(snippet):
    nnsight = pytest.importorskip("nnsight", reason="needs nnsight: pip install -e .[consumers]")
    module, folder, expected = snippet
    model = nnsight.TransformersModel(str(folder), task="text-generation", dispatch=True)
    assert module.steered_by_nnsight(model, IDS, **GREEDY).tolist() == expected.tolist()


@SITES
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_the_snippet_steers_transformer_lens(snippet):
    lens = pytest.importorskip(
        "transformer_lens", reason="needs transformer-lens: pip install -e .[consumers]"
    )
    module, folder, expected = snippet
    model = lens.TransformerBridge.boot_transformers(
        str(folder),
        hf_model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    found = module.steered_by_transformer_lens(
        model, IDS, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False
    )
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_an_adapted_model_and_an_unknown_format_are_refused(loaded, config, tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", r=1))
    with pytest.raises(ExportRefused, match="carries an adapter already; merge it"):
        export(config, "peft", tmp_path / "out", load_model(wrapped, tiny.tokenizer()))
    with pytest.raises(InputError, match=r"--format must be one of gguf, .*did you mean peft"):
        export(config, "pfet", tmp_path / "out", loaded)


@SITES
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
def test_the_adapter_holds_the_biases_and_nothing_else(layers, loaded, config, tmp_path):
    export(config, "peft", tmp_path / "out", loaded)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    nonzero = {name for name, tensor in tensors.items() if tensor.any()}
    block = "base_model.model.model.layers.{}.mlp.down_proj.lora_B.bias"
    assert nonzero == {block.format(layer) for layer in layers}
