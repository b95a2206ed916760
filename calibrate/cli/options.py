"""The options of the commands, in the order --help shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from calibrate.cli.option_types import FILE, PLACE, TEXT, budgets, json_object
from calibrate.common.settings import Sampling, Settings, settings_of

SETTINGS = settings_of(Sampling) | settings_of(Settings)
Named = tuple[str, Callable[[Any], Any]]  # an option's name without dashes, and its decorator


def _option(
    name: str,
    type: Any,
    metavar: str | None = None,
    help: str | None = None,
    default: Any = None,
    **more: Any,
) -> Named:
    if default is not None:  # click tells a default of None from none
        more |= {"default": default, "show_default": True}
    return name, click.option(f"--{name}", type=type, metavar=metavar, help=help, **more)


def _refuse_to_share(_ctx: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        raise click.UsageError(
            "--tensor-parallel is for calibrate, verify and generate, whose steps several "
            "processes can take together; here one spreads the model: give --device-map auto"
        )


def _flag(name: str, help: str | None, *parameter: str) -> Named:
    return name, click.option(f"--{name}", *parameter, is_flag=True, help=help)


def _setting(field: str, name: str | None = None, **differs: Any) -> Named:
    """The option of a field of the settings; `differs` overrides what is not as in the field."""
    setting, name = SETTINGS[field], name or field.replace("_", "-")
    kind = setting.accepts[0]
    if kind is bool:
        return _flag(name, setting.help)
    attributes = {
        "type": click.Choice(setting.choices) if setting.choices else {str: TEXT}.get(kind, kind),
        "metavar": setting.metavar,
        "help": setting.help,
        "default": setting.default,
    }
    return _option(name, **(attributes | differs))


OPTIONS = dict(
    [
        _option(
            "model",
            TEXT,
            "MODEL",
            "smollm2, gemma3-270m, a hub id, a directory, or a .gguf file.",
            "smollm2",
        ),
        _option(
            "concept",
            TEXT,
            "CONCEPT",
            "A built-in concept, a file of texts, or a name for your own texts.",
        ),
        _option("out", FILE, "DIR", "Where the result goes.  [default: CONCEPT-MODEL]"),
        _option(
            "ce-budget",
            budgets,
            "NATS[,…]",
            "Largest allowed rise of cross-entropy, nats per token. Of several the first ships; "
            "where it buys less than --min-gain the next larger one that does, and where it does "
            "harm the next smaller one; and the frontier shows what each buys, even if none ships.",
            f"{SETTINGS['ce_budget'].default:g}",
        ),
        _setting("goal"),
        _setting("layer", type=TEXT),
        _option(
            "positives",
            FILE,
            "FILE",
            "Texts that express the concept: .txt, one a line, .jsonl, .json, .csv or .tsv.",
        ),
        _setting(
            "negatives",
            type=TEXT,
            metavar="|".join((*SETTINGS["negatives"].choices, "FILE")),
            help="What v is measured against: the concept's negative texts (contrastive), samples "
            "of the model (random), or a file of texts that do not express it.",
            default=None,
            multiple=True,
        ),
        _option("describe", TEXT, "TEXT", "Have the model write the texts from this description."),
        _setting("positions"),
        _setting("pooling"),
        _setting("normalize"),
        _option(
            "corpus",
            FILE,
            "FILE",
            "Texts to measure cross-entropy on.  [default: the model's own replies]",
        ),
        _option(
            "start",
            PLACE,
            "DIR",
            "An earlier calibration of the concept, to be confirmed or corrected on a model that "
            "has changed since.",
        ),
        _option(
            "beside",
            PLACE,
            "DIR",
            "A calibration of the same model whose concept is steered too, under one budget.",
        ),
        _option(
            "mix",
            float,
            "SHARE",
            "Share of --beside in the pair, each in units of the strength that spends the budget "
            "alone.  [default: 0.5]",
        ),
        _option("prompts", FILE, "FILE", "Neutral prompts, one a line.  [default: built in]"),
        _setting("max_new_tokens", "reply-tokens"),
        _setting("long_run"),
        _option(
            "chat-template-kwargs",
            json_object,
            "JSON",
            "Variables for the chat template, such as '{\"enable_thinking\": false}'.",
        ),
        _option(
            "judge",
            TEXT,
            "NAME",
            "Who reads presence: auto, a probe that learns from graded replies; "
            "question[:MODEL], openai:MODEL, embedding[:MODEL], or module:function.",
            "auto",
        ),
        _option(
            "audit",
            TEXT,
            "NAME",
            "A second judge of the final replies: auto, none, or as --judge.",
            "auto",
        ),
        _option(
            "guard",
            TEXT,
            "FILE",
            "Questions that steering should not make the model forget: auto for 240 built-in ones, "
            "none, a file of question, choices and answer, or lm-eval:TASK[:MOST].",
            "auto",
        ),
        _option(
            "teacher",
            TEXT,
            "MODEL",
            "Who grades replies for the probe to learn from: qwen2.5-1.5b, a hub id, a .gguf "
            "file, openai:MODEL, or none.  [default: readers, for built-in concepts]",
        ),
        _flag("fetch-teacher", "Fetch qwen2.5-1.5b (1.1 GB) if it is wanted."),
        _setting("judge_question", type=FILE),
        _setting("judge_url"),
        _setting("max_fluency_drop"),
        _setting("max_guard_drop"),
        _setting("min_gain"),
        _setting("trials"),
        _setting("precision"),
        _option("max-tokens", int, "N", "Token-forwards that may be spent in all."),
        _option("max-minutes", float, "M", "Minutes that may be spent in all."),
        _setting("seed"),
        _setting("confidence"),
        _option(
            "storage",
            TEXT,
            "URL",
            "Database or grpc://HOST:PORT that workers share.  [default: a journal in DIR]",
        ),
        _option("study", TEXT, "NAME", "Name of the study in the storage."),
        _option("device", TEXT, "auto|cpu|cuda|mps", default="auto"),
        _option(
            "device-map",
            TEXT,
            "auto|balanced|balanced_low_0|sequential",
            "Spread the model over several devices.",
        ),
        _flag(
            "tensor-parallel",
            "Share the model between the processes that torchrun starts: "
            "torchrun --nproc-per-node N --no-python calibrate ….",
        ),
        _option(
            "dtype",
            TEXT,
            "auto|float32|bfloat16|float16|float64",
            "Precision; auto is that of the calibration, and for a new one float32 on a CPU and "
            "the checkpoint's own elsewhere.",
            "auto",
        ),
        _option("batch-tokens", int, "N", "Positions in one forward pass.", 2048),
        _option("blocks", TEXT, "PATH", "Dotted path of the decoder blocks."),
        _option("revision", TEXT, "REV", "Revision of a hub model."),
        _flag("trust-remote-code", "Let a hub model run its own code."),
        _flag("json", "Print the result as JSON, nothing else.", "as_json"),
        _flag("quiet", "Print nothing but the result's headline."),
    ]
)

MAIN_JOB = tuple(OPTIONS)

OPTIONS["one-budget"] = _setting("ce_budget")[1]
OPTIONS["laws-out"] = _option(
    "out", FILE, "DIR", "Where the result goes.  [default: CONCEPT-MODEL-laws]"
)[1]
OPTIONS["elsewhere"] = _option("model", TEXT, "MODEL", "Another place to load the model from.")[1]
OPTIONS["one-process"] = click.option(
    "--tensor-parallel", is_flag=True, hidden=True, expose_value=False, callback=_refuse_to_share
)
OPTIONS["laws-positions"] = _setting(
    "positions", help="Steer every position, or the last of each pass; auto steers every one."
)[1]
