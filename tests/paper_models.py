"""The eleven models of arXiv:2602.02712 (its Table A.1): published shapes, and tiny ones like them.

A tiny model keeps what makes an architecture: its norms, its heads to a key-value head, a head
dimension that differs from the width over heads, local layers between global ones, whether the
unembedding is the embedding. The paper's 1-layer GPT was trained by its authors; the one that is
trained for the tests stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tiny
import torch
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

TINY_WORDS = len(tiny.VOCABULARY)
QUIET = 0.3  # of the weights of a random block


@dataclass(frozen=True)
class PaperModel:
    """One model, as published.

    name: its hub id. billions: parameters, as its authors say. group: heads to a key-value head.
    also: what else its logits or layers go through.
    """

    name: str
    kind: str
    billions: float
    layers: int
    width: int
    heads: int
    group: int
    head: int
    ffn: int
    vocabulary: int
    tied: bool
    norm: str
    also: str = ""

    def config(self) -> PreTrainedConfig:
        """The config of the real one."""
        return _config(self, self.layers, self.width, self.heads, self.head, self.ffn,
                       self.vocabulary, 512)  # fmt: skip

    def built_tiny(self) -> PreTrainedModel:
        """A random model of the same shape in small, that can be steered.

        Its blocks write little, and words mean the same at both ends.
        """
        layers, heads = min(self.layers, 6 if self.kind.startswith("gemma") else 3), 4
        head = 16 if self.head * self.heads > self.width else 8
        made = tiny.from_config(_config(self, layers, 32, heads, head, 48, TINY_WORDS, 16))
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if weight.ndim == 2 and "embed" not in name and "wte" not in name:
                    weight.mul_(QUIET)
            if not self.tied:
                made.get_output_embeddings().weight.copy_(made.get_input_embeddings().weight)
        return made


def _config(
    one: PaperModel,
    layers: int,
    width: int,
    heads: int,
    head: int,
    ffn: int,
    words: int,
    window: int,
) -> PreTrainedConfig:
    if one.kind == "gpt2":
        return GPT2Config(
            vocab_size=words, n_positions=1024, n_embd=width, n_layer=layers, n_head=heads,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    shape: dict[str, Any] = {
        "vocab_size": words, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": max(1, heads // one.group),
        "head_dim": head, "intermediate_size": ffn, "tie_word_embeddings": one.tied,
    }  # fmt: skip
    if one.kind == "gemma3":
        return Gemma3TextConfig(**shape, sliding_window=window)
    if one.kind == "gemma3 with images":
        return Gemma3Config(
            text_config=shape | {"sliding_window": 2 * window},
            vision_config=_vision(tiny_one=words == TINY_WORDS),
            mm_tokens_per_image=4 if words == TINY_WORDS else 256,
            tie_word_embeddings=one.tied,
        )
    kinds = {"qwen3": Qwen3Config, "llama": LlamaConfig, "mistral": MistralConfig}
    more = {"sliding_window": None} if one.kind == "mistral" else {}
    return kinds[one.kind](**shape, **more)


def _vision(tiny_one: bool) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = (16, 16, 1, 2) if tiny_one else (1152, 4304, 27, 16)
    image = (
        {"image_size": 28, "patch_size": 14} if tiny_one else {"image_size": 896, "patch_size": 14}
    )
    return dict(zip(names, sizes, strict=True)) | image


LAYER_NORM, RMS, RMS_QK, RMS_AROUND = (
    "LayerNorm", "RMSNorm", "RMSNorm, of queries and keys too",
    "RMSNorm before and after, of queries and keys too",
)  # fmt: skip

MODELS = (
    PaperModel("openai-community/gpt2", "gpt2", 0.12, 12, 768, 12, 1, 64, 3072, 50257, True,
               LAYER_NORM, "learned positions"),
    PaperModel("openai-community/gpt2-large", "gpt2", 0.77, 36, 1280, 20, 1, 64, 5120, 50257, True,
               LAYER_NORM, "learned positions"),
    PaperModel("openai-community/gpt2-xl", "gpt2", 1.5, 48, 1600, 25, 1, 64, 6400, 50257, True,
               LAYER_NORM, "learned positions"),
    PaperModel("google/gemma-3-1b-it", "gemma3", 1.0, 26, 1152, 4, 4, 256, 6912, 262144, True,
               RMS_AROUND, "five local layers to a global one, 512 tokens"),
    PaperModel("google/gemma-3-4b-it", "gemma3 with images", 4.3, 34, 2560, 8, 2, 256, 10240,
               262208, True, RMS_AROUND, "five local layers to a global one, 1024 tokens; images"),
    PaperModel("Qwen/Qwen3-0.6B", "qwen3", 0.6, 28, 1024, 16, 2, 128, 3072, 151936, True, RMS_QK),
    PaperModel("Qwen/Qwen3-4B", "qwen3", 4.0, 36, 2560, 32, 4, 128, 9728, 151936, True, RMS_QK),
    PaperModel("Qwen/Qwen3-8B", "qwen3", 8.2, 36, 4096, 32, 4, 128, 12288, 151936, False, RMS_QK),
    PaperModel("meta-llama/Llama-2-7b-chat-hf", "llama", 6.7, 32, 4096, 32, 1, 128, 11008, 32000,
               False, RMS),
    PaperModel("mistralai/Mistral-7B-Instruct-v0.3", "mistral", 7.2, 32, 4096, 32, 4, 128, 14336,
               32768, False, RMS),
)  # fmt: skip
