"""Small honest doubles: random models of every architecture, and a language of forty words.

The words come in three kinds, bright, dull and plain. A text's concept is the kind of its words,
and its embeddings differ along one direction, so a random model with tied embeddings can be
steered and probed for it: nothing is downloaded and nothing is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gemma3 import Gemma3ForConditionalGeneration

from calibrate.engine.loading import load_model
from calibrate.engine.site import Site, SteeringVector
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel
from calibrate.texts.concept import Concept

BRIGHT = tuple("sun laugh song dance bright feast kite gift smile spark bloom cheer".split())
DULL = tuple("rain sigh hush limp grey crust mud debt frown ash wilt groan".split())
PLAIN = tuple("the a house road walks sits with and then table river chair one two stone".split())
SPECIAL = ["<unk>", "<s>", "</s>", "<user>", "<reply>"]
VOCABULARY = [*SPECIAL, *BRIGHT, *DULL, *PLAIN]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<reply> ' }}{{ m.content }} "
    "{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}


def tokenizer(*, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer without a pad token; with `bos` it adds <s> by itself."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "eos_token": "</s>"}
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        names["bos_token"] = "<s>"
    made = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    made.add_special_tokens({"additional_special_tokens": ["<user>", "<reply>"]})
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def _common(**extra: object) -> dict[str, object]:
    return {"vocab_size": len(VOCABULARY), "max_position_embeddings": 128, **SMALL, **extra}


def _gpt2(layers: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=128,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: _gpt2(3),
    "gpt2-1-layer": lambda: _gpt2(1),
    "llama": lambda: LlamaConfig(**_common(**HEADS)),
    "mistral": lambda: MistralConfig(**_common(**HEADS, sliding_window=16)),
    "qwen3": lambda: Qwen3Config(**_common(**HEADS)),
    "gemma2": lambda: Gemma2Config(**_common(**HEADS, final_logit_softcapping=5.0)),
    "gemma3": lambda: Gemma3TextConfig(**_common(**HEADS, sliding_window=16)),
    "gemma3-multimodal": lambda: Gemma3Config(
        text_config=_common(**HEADS, sliding_window=16),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**_common(intermediate_size=48)),
    "granite": lambda: GraniteConfig(
        **_common(num_key_value_heads=2, intermediate_size=48, logits_scaling=4.0)
    ),
    "phi": lambda: PhiConfig(**_common(intermediate_size=48)),
    "opt": lambda: OPTConfig(**_common(ffn_dim=48, word_embed_proj_dim=32)),
    "falcon": lambda: FalconConfig(**_common()),
    "bloom": lambda: BloomConfig(vocab_size=len(VOCABULARY), hidden_size=32, n_layer=3, n_head=4),
}


def model(
    architecture: str = "llama", *, layers: int | None = None, spread: float = 0.2
) -> PreTrainedModel:
    """A random model, the same every time; `spread` is the standard deviation of its weights."""
    config = CONFIGS[architecture]()
    if layers is not None:
        config.num_hidden_layers = layers
    return from_config(config, spread)


def from_config(config: PreTrainedConfig, spread: float = 0.2) -> PreTrainedModel:
    """A random model of a config in whose words `BRIGHT` and `DULL` can be told."""
    config.initializer_range = spread
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = of_class(config)
    _represent_kinds(made, spread)
    made.generation_config.eos_token_id = 2
    return made.eval()


def of_class(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a config, in the class that transformers has for it."""
    if isinstance(config, Gemma3Config):
        return Gemma3ForConditionalGeneration(config)
    return AutoModelForCausalLM.from_config(config)


def _represent_kinds(made: PreTrainedModel, spread: float) -> None:
    """Let the embeddings of bright and dull words differ along one direction."""
    embedding = made.get_input_embeddings().weight
    direction = torch.randn(embedding.shape[1], generator=torch.Generator().manual_seed(42))
    with torch.no_grad():
        for sign, words in ((1, BRIGHT), (-1, DULL)):
            embedding[[VOCABULARY.index(word) for word in words]] += sign * spread * direction


def loaded(
    architecture: str = "llama",
    *,
    batch_tokens: int = 2048,
    bos: bool = False,
    chat: bool = False,
    layers: int | None = None,
    spread: float = 0.2,
) -> LoadedModel:
    """A random model, loaded the way `calibrate` loads an in-memory one."""
    return load_model(
        model(architecture, layers=layers, spread=spread),
        tokenizer(bos=bos, chat=chat),
        batch_tokens=batch_tokens,
    )


def text(words: Sequence[str], rng: random.Random, length: int = 12) -> str:
    """A text in which half of the words are of one kind, and half plain."""
    return " ".join(rng.choice(rng.choice((words, PLAIN))) for _ in range(length))


def texts(words: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """Distinct texts of one kind."""
    rng = random.Random(f"{words[0]} {seed}")
    found: dict[str, None] = {}
    while len(found) < n:
        found[text(words, rng, rng.randint(8, 14))] = None
    return list(found)


def concept(n: int = 40) -> Concept:
    """Bright against dull."""
    return Concept.from_texts("bright", texts(BRIGHT, n), texts(DULL, n))


def prompts(n: int = 60) -> list[str]:
    """Plain prompts, all different."""
    return texts(PLAIN, n, seed=1)


def share_of_bright_words(texts: Sequence[str], concept: str) -> list[float]:
    """A judge that is as plain as can be."""
    words = [text.split() for text in texts]
    return [sum(word in BRIGHT for word in each) / max(len(each), 1) for each in words]


def site(values: torch.Tensor, layer: int, positions: Positions = "all") -> Site:
    """One block steered along any vector."""
    return Site((SteeringVector(values, layer, residual_norm=1.0),), positions)


@contextmanager
def hand_written_hook(block: nn.Module, shift: torch.Tensor, last: bool = False) -> Iterator[None]:
    """Steering as anyone would write it in five lines: the oracle for ours."""

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        several = isinstance(output, (tuple, list))
        hidden = (output[0] if several else output).clone()
        if last:
            hidden[:, -1] += shift
        else:
            hidden += shift
        return (hidden, *output[1:]) if several else hidden

    handle = block.register_forward_hook(hook)
    yield
    handle.remove()
