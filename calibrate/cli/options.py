"""The options of the commands, in the order --help shows them."""

from __future__ import annotations

import click

from calibrate.cli.option_types import FILE, TEXT, JsonType, LayerType

OPTIONS = {
    "model": click.option(
        "--model",
        type=TEXT,
        default="smollm2",
        show_default=True,
        metavar="MODEL",
        help="smollm2, gemma3-270m, a hub id, a directory, or a .gguf file.",
    ),
    "concept": click.option(
        "--concept",
        type=TEXT,
        metavar="CONCEPT",
        help="A built-in concept, a file of texts, or a name for your own texts.",
    ),
    "out": click.option(
        "--out",
        type=FILE,
        metavar="DIR",
        help="Where the result goes.  [default: CONCEPT-MODEL]",
    ),
    "ce-budget": click.option(
        "--ce-budget",
        type=float,
        default=0.1,
        show_default=True,
        metavar="NATS",
        help="Largest allowed rise of cross-entropy, nats per token.",
    ),
    "goal": click.option(
        "--goal",
        type=click.Choice(["increase", "decrease"]),
        default="increase",
        show_default=True,
        help="Steer towards the concept or away from it.",
    ),
    "layer": click.option(
        "--layer", type=LayerType(), default="auto", show_default=True, help="Block to steer."
    ),
    "positives": click.option(
        "--positives",
        type=FILE,
        metavar="FILE",
        help="Texts that express the concept: .txt, one a line, .jsonl, .json, .csv or .tsv.",
    ),
    "negatives": click.option(
        "--negatives",
        type=TEXT,
        multiple=True,
        metavar="contrastive|random|FILE",
        help="What v is measured against; or a file of texts that do not express it.",
    ),
    "describe": click.option(
        "--describe",
        type=TEXT,
        metavar="TEXT",
        help="Have the model write the texts from this description.",
    ),
    "positions": click.option(
        "--positions",
        type=click.Choice(["all", "last", "auto"]),
        default="all",
        show_default=True,
        help="Steer every position, or the last of each pass; auto tries both.",
    ),
    "pooling": click.option(
        "--pooling",
        type=click.Choice(["mean", "last"]),
        default="mean",
        show_default=True,
        help="Make v from token means or from last tokens.",
    ),
    "normalize": click.option("--normalize", is_flag=True, help="Scale v to length 1."),
    "corpus": click.option(
        "--corpus",
        type=FILE,
        metavar="FILE",
        help="Texts to measure cross-entropy on.  [default: the model's own replies]",
    ),
    "prompts": click.option(
        "--prompts",
        type=FILE,
        metavar="FILE",
        help="Neutral prompts, one a line.  [default: built in]",
    ),
    "reply-tokens": click.option(
        "--reply-tokens",
        type=int,
        default=32,
        show_default=True,
        metavar="N",
        help="Tokens of a reply in the search; more for a model that thinks before it answers.",
    ),
    "long-run": click.option(
        "--long-run",
        type=int,
        default=192,
        show_default=True,
        metavar="N",
        help="Tokens of the replies that verification reads as they are served; 0 for none.",
    ),
    "chat-template-kwargs": click.option(
        "--chat-template-kwargs",
        type=JsonType(),
        metavar="JSON",
        help="Variables for the chat template, such as '{\"enable_thinking\": false}'.",
    ),
    "judge": click.option(
        "--judge",
        type=TEXT,
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Who reads presence: auto, a probe that learns from graded replies; "
        "question[:MODEL], openai:MODEL, embedding[:MODEL], or module:function.",
    ),
    "audit": click.option(
        "--audit",
        type=TEXT,
        default="auto",
        show_default=True,
        metavar="NAME",
        help="A second judge of the final replies: auto, none, or as --judge.",
    ),
    "teacher": click.option(
        "--teacher",
        type=TEXT,
        metavar="MODEL",
        help="Who grades replies for the probe to learn from: qwen2.5-1.5b, a hub id, a .gguf "
        "file, openai:MODEL, or none.  [default: readers, for built-in concepts]",
    ),
    "fetch-teacher": click.option(
        "--fetch-teacher", is_flag=True, help="Fetch qwen2.5-1.5b (1.1 GB) if it is wanted."
    ),
    "judge-question": click.option(
        "--judge-question",
        type=FILE,
        metavar="FILE",
        help="What judges are asked, with {text} and {concept} in it.  [default: built in]",
    ),
    "judge-url": click.option(
        "--judge-url",
        type=TEXT,
        metavar="URL",
        help="Where the server of openai:MODEL is.  [default: OPENAI_BASE_URL]",
    ),
    "max-fluency-drop": click.option(
        "--max-fluency-drop",
        type=float,
        metavar="NATS",
        help="Largest allowed drop of the replies' log-probability under the unsteered model.",
    ),
    "min-gain": click.option(
        "--min-gain",
        type=float,
        default=0.05,
        show_default=True,
        metavar="P",
        help="Smallest change of presence worth having, 0.05 for five more replies of a hundred; "
        "less is infeasible. Lower it to ship weaker effects, to 0 for any that can be measured.",
    ),
    "trials": click.option(
        "--trials",
        type=int,
        default=8,
        show_default=True,
        metavar="N",
        help="Strengths the study tries at most.",
    ),
    "precision": click.option(
        "--precision",
        type=float,
        default=0.02,
        show_default=True,
        metavar="P",
        help="Presence that may be left to gain when the study stops.",
    ),
    "max-tokens": click.option(
        "--max-tokens", type=int, metavar="N", help="Token-forwards that may be spent in all."
    ),
    "max-minutes": click.option(
        "--max-minutes", type=float, metavar="M", help="Minutes that may be spent in all."
    ),
    "seed": click.option("--seed", type=int, default=0, show_default=True, metavar="N"),
    "confidence": click.option(
        "--confidence",
        type=float,
        default=0.95,
        show_default=True,
        help="Of intervals and of the bound on cross-entropy.",
    ),
    "storage": click.option(
        "--storage",
        type=TEXT,
        metavar="URL",
        help="Database or grpc://HOST:PORT that workers share.  [default: a journal in DIR]",
    ),
    "study": click.option(
        "--study", type=TEXT, metavar="NAME", help="Name of the study in the storage."
    ),
    "device": click.option(
        "--device",
        type=TEXT,
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda|mps|balanced",
    ),
    "dtype": click.option(
        "--dtype",
        type=TEXT,
        default="auto",
        show_default=True,
        metavar="auto|float32|bfloat16|float16",
    ),
    "batch-tokens": click.option(
        "--batch-tokens",
        type=int,
        default=2048,
        show_default=True,
        metavar="N",
        help="Positions in one forward pass.",
    ),
    "blocks": click.option(
        "--blocks", type=TEXT, metavar="PATH", help="Dotted path of the decoder blocks."
    ),
    "revision": click.option(
        "--revision", type=TEXT, metavar="REV", help="Revision of a hub model."
    ),
    "trust-remote-code": click.option(
        "--trust-remote-code", is_flag=True, help="Let a hub model run its own code."
    ),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON, nothing else."
    ),
    "quiet": click.option("--quiet", is_flag=True, help="Print nothing but the result's headline."),
}

MAIN_JOB = tuple(OPTIONS)
