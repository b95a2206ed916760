"""Models from disk and from memory: whole, or refused with the reason.

The names of the weights that a message has to list are written by hand, from the files.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from refused import Refused, each
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    MixtralConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import calibrate
from calibrate.common.errors import CalibrateWarning, ModelError, NumericalError
from calibrate.engine.loading import load_model
from calibrate.models.devices import random_states_kept
from calibrate.models.prompts import encode_text

UP = "model.layers.1.mlp.up_proj.weight"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(folder: Path, model=None, *, tokenizer: bool = True, **options) -> Path:
    """A checkpoint with its tokenizer in a new directory `ck`."""
    path = folder / "ck"
    (model or tiny.model()).save_pretrained(path, **options)
    if tokenizer:
        tiny.tokenizer().save_pretrained(path)
    return path


def changed(folder: Path, change, model=None) -> Path:
    """A checkpoint whose weights were put through `change`."""
    path = saved(folder, model)
    file = path / "model.safetensors"
    weights = {key: value.clone() for key, value in load_file(file).items()}
    save_file({k: v.contiguous() for k, v in change(weights).items()}, file, {"format": "pt"})
    return path


def without(*keys: str):
    return lambda weights: {key: value for key, value in weights.items() if key not in keys}


def under(prefix: str):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def adding(**more: torch.Tensor):
    return lambda weights: {**weights, **{key.replace("__", "."): v for key, v in more.items()}}


def spoilt(folder: Path, file: str, content: bytes | None) -> Path:
    """A checkpoint of which one file holds something else, or is gone."""
    path = saved(folder)
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    return path


def half(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def configured(folder: Path, **facts: object) -> Path:
    path = saved(folder)
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **facts}))
    return path


def sharded(folder: Path) -> Path:
    return saved(folder, max_shard_size="20KB")


def without_a_shard(folder: Path) -> Path:
    path = sharded(folder)
    next(path.glob("*-00002-of-*")).unlink()
    return path


def index_that_says(folder: Path, text: str) -> Path:
    path = sharded(folder)
    (path / "model.safetensors.index.json").write_text(text)
    return path


def pickled(folder: Path) -> Path:
    path = saved(folder)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def block_more(weights):
    last = {key: value for key, value in weights.items() if "layers.2." in key}
    return {**weights, **{k.replace("layers.2.", "layers.3."): v.clone() for k, v in last.items()}}


def experts(folder: Path, change) -> Path:
    config = MixtralConfig(**tiny._common(**tiny.HEADS, num_local_experts=4))
    return changed(folder, change, AutoModelForCausalLM.from_config(config))


def classifier():
    return AutoModelForSequenceClassification.from_config(tiny.CONFIGS["llama"]())


def bert():
    return BertConfig(vocab_size=40, intermediate_size=16, **SMALL)


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, num_layers=1, num_heads=2, d_ff=16, d_kv=8)
    )


def llama_gguf(folder: Path, *, drop: str = "", shape: tuple[int, int] = (48, 32)) -> Path:
    """A Llama of one block as a GGUF, written by hand."""
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    words = [*tiny.VOCABULARY, *("b", "ab", "ba")]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b", "b a"])  # older transformers read a single one wrongly
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(words), 32),
        "output": (len(words), 32),
        "output_norm": (32,),
        **{f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")},
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": shape,
        "blk.0.ffn_down": (32, 48),
    }
    for name, size in shapes.items():
        if name != drop:
            writer.add_tensor(f"{name}.weight", rng.normal(size=size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter(folder: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(saved(folder))
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    return folder / "adapter"


def adapter_without(folder: Path, file: str) -> Path:
    path = adapter(folder)
    (path / file).unlink()
    return path


def calibrated_while_steered(_folder: Path):
    loaded = from_memory(tiny.model())
    with tiny.site(torch.ones(32), 1).apply(loaded.blocks, 1.0):
        calibrate.calibrate(loaded, tiny.concept(60), teacher="none", audit="none", guard="none")


def from_memory(model, tokenizer=None):
    return load_model(model, tokenizer or tiny.tokenizer())


def filled(value: float):
    model = tiny.model()
    with torch.no_grad():
        model.get_parameter(UP).fill_(value)
    return model


def in_inference_mode(make):
    with torch.inference_mode():
        return make()


WEIGHTS = "the weights of …ck must be those of its LlamaForCausalLM, but "
REFUSED = [
    Refused(
        "one block's tensor is missing",
        f"{WEIGHTS}1 is missing ({UP}): transformers would start them at random; fetch or save "
        "the checkpoint again",
        lambda folder: load_model(changed(folder, without(UP))),
        ModelError,
    ),
    Refused(
        "all names begin with PEFT's prefix",
        f"{WEIGHTS}30 are missing (lm_head.weight, …, … 27 more) and 30 are left over "
        "(base_model.model.lm_head.weight, …): the names in the file begin with "
        "'base_model.model.', which is PEFT's; save model.merge_and_unload() instead",
        lambda folder: load_model(changed(folder, under("base_model.model."))),
        ModelError,
    ),
    Refused(
        "all names begin with torch.compile's prefix",
        "…begin with '_orig_mod.', which is torch.compile's; save model._orig_mod instead",
        lambda folder: load_model(changed(folder, under("_orig_mod."))),
        ModelError,
    ),
    Refused(
        "all names begin with DataParallel's prefix",
        "…begin with 'module.', which is DataParallel's, DDP's or DeepSpeed's; save model.module "
        "instead",
        lambda folder: load_model(changed(folder, under("module."))),
        ModelError,
    ),
    Refused(
        "all names begin with a prefix of the user's own",
        "…begin with 'student.', which is a wrapper's; save the model inside it instead",
        lambda folder: load_model(changed(folder, under("student."))),
        ModelError,
    ),
    Refused(
        "an adapter's weights stand among the model's",
        f"{WEIGHTS}1 is left over (model.layers.0.self_attn.q_proj.lora_A.weight): an adapter's "
        "weights are among the model's; save model.merge_and_unload() instead",
        lambda folder: load_model(
            changed(
                folder,
                adding(model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(2, 32)),
            )
        ),
        ModelError,
    ),
    Refused(
        "a tensor has another shape",
        f"{WEIGHTS}1 is misshapen ({UP}: (5, 32) instead of (48, 32)): correct its config.json, or "
        "fetch or save the checkpoint again",
        lambda folder: load_model(changed(folder, lambda w: {**w, UP: w[UP][:5]})),
        ModelError,
    ),
    Refused(
        "the config has another vocabulary than the weights",
        f"{WEIGHTS}2 are misshapen (lm_head.weight: (44, 32) instead of (99, 32), "
        "model.embed_tokens.weight: (44, 32) instead of (99, 32)): correct its config.json, …",
        lambda folder: load_model(configured(folder, vocab_size=99)),
        ModelError,
    ),
    Refused(
        "the file has a block more than the config",
        f"{WEIGHTS}9 are left over (model.layers.3.input_layernorm.weight, …, … 6 more): correct "
        "its config.json, …",
        lambda folder: load_model(changed(folder, block_more)),
        ModelError,
    ),
    Refused(
        "a bias that the config does not know",
        f"{WEIGHTS}1 is left over (model.layers.1.self_attn.q_proj.bias): correct its …",
        lambda folder: load_model(
            changed(folder, adding(model__layers__1__self_attn__q_proj__bias=torch.ones(32)))
        ),
        ModelError,
    ),
    Refused(
        "a model saved without its head",
        f"{WEIGHTS}1 is missing (lm_head.weight): it was saved without its unembedding, as "
        "AutoModel or a classifier is; save the AutoModelForCausalLM it belongs to",
        lambda folder: load_model(saved(folder, tiny.model().model)),
        ModelError,
    ),
    Refused(
        "a classifier",
        f"{WEIGHTS}1 is missing (lm_head.weight) and 1 is left over (score.weight): it was saved "
        "without its unembedding, …",
        lambda folder: load_model(saved(folder, classifier())),
        ModelError,
    ),
    Refused(
        "an expert's tensor is missing",
        "the weights of …ck must be whole, but the parts of 1 are missing or misshapen "
        "(model.layers.1.mlp.experts.gate_up_proj): fetch or save the checkpoint again",
        lambda folder: load_model(
            experts(folder, without("model.layers.1.block_sparse_moe.experts.2.w1.weight"))
        ),
        ModelError,
    ),
    Refused(
        "a shard is missing",
        "…model-00002-of-00006.safetensors must be there, since the checkpoint names it; fetch the "
        "missing file",
        lambda folder: load_model(without_a_shard(folder)),
        ModelError,
    ),
    Refused(
        "the index names a file that is not there",
        "…gone.safetensors must be there, since the checkpoint names it; fetch the missing file",
        lambda folder: load_model(
            index_that_says(folder, '{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}')
        ),
        ModelError,
    ),
    Refused(
        "an index that is not JSON",
        "…model.safetensors.index.json must be JSON (…); fetch or save the checkpoint again",
        lambda folder: load_model(index_that_says(folder, "{")),
        ModelError,
    ),
    Refused(
        "an index without a map",
        "…model.safetensors.index.json must name its weight_map, and it does not; …",
        lambda folder: load_model(index_that_says(folder, "{}")),
        ModelError,
    ),
    Refused(
        "a safetensors file cut off in the middle",
        "…model.safetensors must be a whole safetensors file, got … bytes that are not (…); fetch "
        "it again",
        lambda folder: load_model(half(saved(folder) / "model.safetensors").parent),
        ModelError,
    ),
    Refused(
        "a safetensors file of garbage",
        "…model.safetensors must be a whole safetensors file, got 500 bytes that are not (…header "
        "too large); fetch it again",
        lambda folder: load_model(spoilt(folder, "model.safetensors", b"\xff" * 500)),
        ModelError,
    ),
    Refused(
        "an empty safetensors file",
        "…model.safetensors must be a whole safetensors file, got 0 bytes that are not (…); …",
        lambda folder: load_model(spoilt(folder, "model.safetensors", b"")),
        ModelError,
    ),
    Refused(
        "a git-lfs pointer in place of the weights",
        "…model.safetensors is a git-lfs pointer of … bytes, not the weights; git lfs pull",
        lambda folder: load_model(
            spoilt(
                folder,
                "model.safetensors",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            )
        ),
        ModelError,
    ),
    Refused(
        "weights that are not finite",
        "the weights of …ck must be finite, and 1 are not (model.layers.1.mlp.up_proj.weight); "
        "fetch or save the checkpoint again",
        lambda folder: load_model(saved(folder, filled(float("nan")))),
        NumericalError,
    ),
    Refused(
        "weights that are pickled",
        "the weights of …ck must be safetensors, since nothing is unpickled here, got "
        "pytorch_model.bin; where you trust them, load them with transformers once and "
        "save_pretrained the model, which writes safetensors",
        lambda folder: load_model(pickled(folder)),
        ModelError,
    ),
    Refused(
        "no weights at all",
        "…model.safetensors must hold the weights, and there is no such file",
        lambda folder: load_model(spoilt(folder, "model.safetensors", None)),
        ModelError,
    ),
    Refused(
        "no config.json",
        "model must be a directory that one was saved to, got …ck, where config.json cannot be "
        "read (No such file or directory)",
        lambda folder: load_model(spoilt(folder, "config.json", None)),
        ModelError,
    ),
    Refused(
        "a config.json that is not JSON",
        "…config.json must be JSON (…); fetch or save the checkpoint again",
        lambda folder: load_model(spoilt(folder, "config.json", b'{"model_type": ')),
        ModelError,
    ),
    Refused(
        "a config.json that is a list",
        "…config.json must name its model_type, and it does not; fetch or save the checkpoint …",
        lambda folder: load_model(spoilt(folder, "config.json", b"[1]")),
        ModelError,
    ),
    Refused(
        "a model type there is not",
        "…ck is of model type 'nonsense', which transformers … does not know; correct its "
        "config.json, or update transformers",
        lambda folder: load_model(configured(folder, model_type="nonsense")),
        ModelError,
    ),
    Refused(
        "a config value of the wrong type",
        "transformers cannot load …ck: …num_hidden_layers…",
        lambda folder: load_model(configured(folder, num_hidden_layers="three")),
        ModelError,
    ),
    Refused(
        "a config that divides by zero",
        "transformers cannot load …ck: ZeroDivisionError: …",
        lambda folder: load_model(configured(folder, num_attention_heads=0)),
        ModelError,
    ),
    Refused(
        "a model that brings code of its own",
        "…ck brings code of its own, which must be allowed: read it, then give --trust-remote-code",
        lambda folder: load_model(
            configured(
                folder,
                model_type="mine",
                auto_map={"AutoConfig": "its.Config", "AutoModelForCausalLM": "its.Model"},
            )
        ),
        ModelError,
    ),
    *(
        Refused(
            f"a checkpoint quantised by {method}, without its package",
            f"…ck is quantised by {method}, which cannot be used here: …{package}…",
            lambda folder, method=method, more=more: load_model(
                configured(folder, quantization_config={"quant_method": method, **more})
            ),
            ModelError,
        )
        for method, package, more in (
            ("bitsandbytes", "bitsandbytes", {"load_in_4bit": True}),
            ("gptq", "optimum", {"bits": 4, "group_size": 8}),
            ("awq", "gptqmodel", {"bits": 4, "group_size": 8}),
            ("torchao", "torchao", {"quant_type": "int8_weight_only"}),
            ("compressed-tensors", "compressed-tensors", {}),
            ("aqlm", "aqlm", {}),
            ("hqq", "HQQ", {}),
        )
    ),
    Refused(
        "no tokenizer beside the model",
        "…ck must come with its tokenizer, and …ck holds none; save the tokenizer beside the "
        "model, or pass tokenizer=…",
        lambda folder: load_model(saved(folder, tokenizer=False)),
        ModelError,
    ),
    Refused(
        "a tokenizer.json that is not JSON",
        "…tokenizer.json must be JSON (…); fetch or save the tokenizer again",
        lambda folder: load_model(spoilt(folder, "tokenizer.json", b"{")),
        ModelError,
    ),
    Refused(
        "a tokenizer.json that is no tokenizer",
        "transformers cannot load the tokenizer of …ck: …; save the tokenizer beside the model, …",
        lambda folder: load_model(spoilt(folder, "tokenizer.json", b'{"a": 1}')),
        ModelError,
    ),
    Refused(
        "an encoder-decoder on disk",
        "…ck must be a decoder-only language model, got t5, which transformers has no "
        "AutoModelForCausalLM for",
        lambda folder: load_model(saved(folder, t5())),
        ModelError,
    ),
    Refused(
        "an encoder on disk",
        "model must predict each token from those before it, and …ck (BertLMHeadModel) looks "
        "ahead, as encoders do; take a decoder",
        lambda folder: load_model(saved(folder, BertLMHeadModel(bert()))),
        ModelError,
    ),
    Refused(
        "an adapter whose base model is gone",
        "the adapter …adapter needs the model it was trained on: …",
        lambda folder: load_model(_without_base(adapter(folder))),
        ModelError,
    ),
    Refused(
        "an adapter without its weights",
        "…adapter_model.safetensors must hold the weights, and there is no such file",
        lambda folder: load_model(adapter_without(folder, "adapter_model.safetensors")),
        ModelError,
    ),
    Refused(
        "a file that is not a .gguf",
        "a model that is a file must be a .gguf, got …notes.txt'",
        lambda folder: load_model(_file(folder / "notes.txt")),
        ModelError,
    ),
    Refused(
        "a .gguf that lacks a tensor",
        "the weights of …tiny.gguf must be those of its LlamaForCausalLM, but 1 is missing "
        "(model.layers.0.mlp.up_proj.weight): …",
        lambda folder: load_model(llama_gguf(folder, drop="blk.0.ffn_up")),
        ModelError,
    ),
    Refused(
        "a .gguf with a tensor of another shape",
        "…tiny.gguf…misshapen (model.layers.0.mlp.up_proj.weight: (40, 32) instead of (48, 32))…",
        lambda folder: load_model(llama_gguf(folder, shape=(40, 32))),
        ModelError,
    ),
    Refused(
        "a .gguf cut off in the middle",
        "transformers cannot read …tiny.gguf (… bytes): …; fetch it again if it is not whole",
        lambda folder: load_model(half(llama_gguf(folder))),
        ModelError,
    ),
    Refused(
        "an empty .gguf",
        "transformers cannot read …empty.gguf: a GGUF begins otherwise than these 0 bytes",
        lambda folder: load_model(_file(folder / "empty.gguf", b"")),
        ModelError,
    ),
    *(
        Refused(
            f"{value!r} as a model",
            f"model must be a name, a path or a transformers model with a language model's head, "
            f"got {said}",
            lambda _, value=value: from_memory(value),
            ModelError,
        )
        for value, said in ((None, "None"), (7, "int 7"), (["smollm2"], "list"))
    ),
    Refused(
        "a plain module as a model",
        "model must be a name, a path or a transformers model …, got Linear",
        lambda _: from_memory(nn.Linear(2, 2)),
        ModelError,
    ),
    Refused(
        "a model in memory without its tokenizer",
        "an in-memory model needs its tokenizer; pass tokenizer=…",
        lambda _: load_model(tiny.model()),
        ModelError,
    ),
    Refused(
        "something else in place of the tokenizer",
        "tokenizer must be a transformers tokenizer, a processor, or the name of a model that has "
        "one, got int 5",
        lambda _: from_memory(tiny.model(), 5),
        ModelError,
    ),
    Refused(
        "a headless model in memory",
        "model must have an unembedding, and LlamaModel has none; load it with "
        "AutoModelForCausalLM",
        lambda _: from_memory(tiny.model().model),
        ModelError,
    ),
    Refused(
        "a headless encoder in memory",
        "model must have an unembedding, and BertModel has none; …",
        lambda _: from_memory(BertModel(bert())),
        ModelError,
    ),
    Refused(
        "an encoder with a head in memory",
        "model must predict each token from those before it, and …BertLMHeadModel) looks ahead…",
        lambda _: from_memory(BertLMHeadModel(bert())),
        ModelError,
    ),
    Refused(
        "an encoder-decoder in memory",
        "model must be a decoder-only language model, got the encoder-decoder "
        "T5ForConditionalGeneration",
        lambda _: from_memory(t5()),
        ModelError,
    ),
    Refused(
        "a model on the meta device",
        "the weights of LlamaForCausalLM must be at hand, and some are on the meta device; …",
        lambda _: from_memory(tiny.model().to("meta")),
        ModelError,
    ),
    Refused(
        "a model made under torch.inference_mode",
        "the weights of LlamaForCausalLM were made under torch.inference_mode, …; load the model "
        "outside of it",
        lambda _: from_memory(in_inference_mode(tiny.model)),
        ModelError,
    ),
    Refused(
        "a model in memory whose weights are not finite",
        "the weights of … must be finite, and 1 are not (model.layers.1.mlp.up_proj.weight); …",
        lambda _: from_memory(filled(float("inf"))),
        NumericalError,
    ),
    Refused(
        "a device there is not",
        "device must be auto, cpu, cuda or mps, and present, got 'cuda:7' (…); …",
        lambda folder: load_model(saved(folder), device="cuda:7"),
        ModelError,
    ),
    Refused(
        "the meta device",
        "device must be auto, cpu, cuda or mps, and present, got 'meta' (…); …",
        lambda folder: load_model(saved(folder), device="meta"),
        ModelError,
    ),
    Refused(
        "a calibration of a model that is being steered",
        "a model must be as it is while it is calibrated, and it is being steered: leave the "
        "`with` that steers it; for two concepts at once, give the earlier calibration as "
        "beside=…, or export it with --format folded and calibrate that checkpoint",
        calibrated_while_steered,
    ),
    Refused(
        "a precision there is not",
        "dtype must be one of auto, float32, bfloat16, float16, float64, got 'float8'",
        lambda folder: load_model(saved(folder), dtype="float8"),
        ModelError,
    ),
    *(
        Refused(
            f"{size!r} positions in a batch",
            f"--batch-tokens must be a whole number from 1 to 2**31, got {size!r}",
            lambda _, size=size: load_model(tiny.model(), tiny.tokenizer(), batch_tokens=size),
        )
        for size in (0, -5, 2.5)
    ),
]


def _file(path: Path, content: bytes = b"hello") -> Path:
    path.write_bytes(content)
    return path


def _without_base(path: Path) -> Path:
    shutil.rmtree(path.parent / "ck")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("calibrate.engine.loading.HfApi", _Offline)


class _Offline:
    def model_info(self, _name, timeout):
        raise ConnectionError("no route to the hub")


@each(REFUSED)
def test_a_model_that_is_not_whole_or_not_one_is_refused(row, tmp_path):
    row.check(tmp_path)


def same_logits(loaded, model) -> None:
    ids = torch.tensor([[5, 9, 12]])
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("gpt2", lambda weights: weights),  # its head is tied, and not in the file
        ("llama", adding(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))),
        ("gpt2", adding(transformer__h__0__attn__masked_bias=torch.ones(1))),
        ("gpt2", adding(transformer__h__0__attn__bias=torch.ones(1, 1, 8, 8))),
        ("gpt-neox", adding(gpt_neox__layers__0__attention__masked_bias=torch.ones(1))),
        ("llama", adding(model__layers__0__self_attn__k_proj__k_scale=torch.ones(1))),
    ],
)
def test_what_does_not_matter_is_neither_missing_nor_left_over(tmp_path, architecture, change):
    path = changed(tmp_path, change, tiny.model(architecture))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrateWarning)
        same_logits(load_model(path), tiny.model(architecture))


def test_parts_that_text_does_not_run_through_are_dropped_with_a_note(tmp_path):
    vision = adding(vision_tower__encoder__layers__0__weight=torch.ones(2))
    with pytest.warns(
        CalibrateWarning, match=r"no use for vision_tower\.encoder\.layers\.0"
    ) as seen:
        same_logits(load_model(changed(tmp_path, vision)), tiny.model())
    assert len([w for w in seen if w.category is CalibrateWarning]) == 1


def test_blocks_that_predict_further_tokens_are_dropped_where_the_config_says_so(tmp_path):
    path = changed(tmp_path, block_more)
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_nextn_predict_layers": 1}))
    with pytest.warns(CalibrateWarning, match=r"no use for model\.layers\.3\."):
        same_logits(load_model(path), tiny.model())


def test_shards_and_whole_gguf_files_load(tmp_path):
    same_logits(load_model(sharded(tmp_path)), tiny.model())
    assert load_model(llama_gguf(tmp_path)).num_layers == 1


def test_an_adapter_is_loaded_on_its_base_with_the_bases_tokenizer(tmp_path):
    path = adapter(tmp_path)
    weights = load_file(path / "adapter_model.safetensors")
    save_file(
        {key: value + 0.1 for key, value in weights.items()}, path / "adapter_model.safetensors"
    )
    loaded = load_model(path)
    assert loaded.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    ids = torch.tensor([[5, 9, 12]])
    gap = (loaded.model(ids).logits - tiny.model()(ids).logits).abs().max()
    assert gap > 0.01


def test_an_adapter_on_a_base_that_is_not_whole_is_refused(tmp_path):
    path = adapter(tmp_path)
    base = tmp_path / "ck" / "model.safetensors"
    save_file(without(UP)(load_file(base)), base, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 is missing \(model\.layers\.1\.mlp\.up_proj"):
        load_model(path)


class Wrapped(nn.Module):
    """What DDP looks like from outside, without its processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Processor:
    """What a multimodal model's processor looks like."""

    def __init__(self, tokenizer, chat_template=None):
        self.tokenizer = tokenizer
        self.chat_template = chat_template


@pytest.mark.parametrize("wrap", [nn.DataParallel, Wrapped, lambda m: Wrapped(Wrapped(m))])
def test_models_are_taken_out_of_what_trains_them(wrap):
    model = tiny.model()
    assert from_memory(wrap(model)).model is model


def test_a_config_steers_a_wrapped_model_as_the_model_itself(finished):
    model, ids = tiny.model("gpt2"), torch.tensor([[5, 9, 12]])
    config = calibrate.load(finished.directory)
    with config.steer(model):
        expected = model(ids).logits
    with config.steer(nn.DataParallel(model)):
        torch.testing.assert_close(model(ids).logits, expected)


def test_a_tokenizer_is_loaded_by_name_or_taken_from_a_processor(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "words")
    model, vocabulary = tiny.model(), tiny.tokenizer().get_vocab()
    for given in (tmp_path / "words", str(tmp_path / "words"), Processor(tiny.tokenizer())):
        assert from_memory(model, given).tokenizer.get_vocab() == vocabulary


def test_a_processors_chat_template_is_used_and_its_tokenizer_left_alone():
    plain = tiny.tokenizer()
    loaded = from_memory(tiny.model(), Processor(plain, tiny.CHAT_TEMPLATE))
    assert loaded.is_chat
    assert plain.chat_template is None


def test_a_call_under_inference_mode_gives_what_it_gives_outside(finished, tiny_options):
    model = tiny.model("gpt2")
    with torch.inference_mode():
        found = calibrate.calibrate(model, **tiny_options).config
        assert torch.is_inference_mode_enabled()
    assert found.intervention == finished.result.config.intervention
    assert found.measured == finished.result.config.measured


@pytest.mark.parametrize("chosen", [True, False])
def test_passes_run_without_cudnns_attention_which_is_as_it_was_afterwards(chosen):
    loaded, seen = from_memory(tiny.model()), []
    attention = torch.backends.cuda
    before = attention.cudnn_sdp_enabled()
    loaded.model.register_forward_pre_hook(lambda *_: seen.append(attention.cudnn_sdp_enabled()))
    attention.enable_cudnn_sdp(chosen)
    try:
        texts = [[encode_text(loaded, text)] for text in tiny.prompts(2)]
        calibrate.extract_vectors(loaded, *texts)
        assert attention.cudnn_sdp_enabled() == chosen
    finally:
        attention.enable_cudnn_sdp(before)
    assert seen
    assert not any(seen)


def test_hooks_and_training_mode_of_a_model_in_memory_are_kept():
    model, seen = tiny.model().train(), []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    loaded = from_memory(model)
    assert loaded.model.training
    assert len(model._forward_hooks) == 1
    handle.remove()


def test_token_ids_go_where_an_embedding_computes_that_waits_elsewhere():
    model, ids = tiny.model(), torch.tensor([[7, 8, 9]])
    expected = model(input_ids=ids).logits
    cpu_offload(model.get_input_embeddings(), execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    loaded = from_memory(model)
    assert loaded.device == torch.device("cpu")
    assert torch.equal(model(input_ids=ids.to(loaded.device)).logits, expected)


def test_the_random_states_of_all_gpus_of_a_model_are_kept(monkeypatch):
    class Spread:
        def parameters(self):
            return [SimpleNamespace(device=torch.device("cuda", place)) for place in (2, 1, 2)]

    kept, here = [], tiny.model()
    monkeypatch.setattr(torch.random, "fork_rng", lambda gpus: kept.append(gpus) or nullcontext())
    with random_states_kept(Spread(), torch.device("cuda", 0)):
        assert kept == [[torch.device("cuda", place) for place in (0, 1, 2)]]
    with random_states_kept(here, torch.device("cpu")):
        assert kept[1:] == [[]]


def test_a_library_precision_may_be_torchs_own(tmp_path):
    assert load_model(saved(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16
