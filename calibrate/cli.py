"""The command line: parse, make one library call, print.

Whatever needs torch is imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.console import Readable, printing, say, say_json, warnings_as_notes
from calibrate.grade_command import grade
from calibrate.options import FILE, LAWS, MAIN_JOB, MODEL, PROMPT, TEXT, apart, options, utf8

if TYPE_CHECKING:
    from calibrate.completions import Completion
    from calibrate.concept import Concept
    from calibrate.config import SteeringConfig
    from calibrate.evidence import Evidence
    from calibrate.model import LoadedModel
    from calibrate.progress import Progress
    from calibrate.terminal import TerminalProgress
    from calibrate.tokens import Prompt

EXIT_INPUT, EXIT_INFEASIBLE, EXIT_VERIFICATION = 2, 3, 4
EXIT_INTERRUPTED = 130
NEGATIVE_KINDS = ("contrastive", "random")
EXPORT_FORMATS = "gguf, peft, folded, easysteer, lm-eval, svec or snippet."


class _Command(Readable, click.Command):
    pass


class _Group(Readable, click.Group):
    command_class = _Command


@click.group(cls=_Group, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.version_option(package_name="steering-calibrate")
@options(*MAIN_JOB)
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Choose the strength of an activation-steering vector, with evidence.

    \b
    calibrate --model smollm2 --concept joy      find the strength
    calibrate show joy-smollm2                   the summary again
    calibrate verify joy-smollm2                 does it still hold? for deployment pipelines
    calibrate judge joy-smollm2 --texts FILE     does its judge read as people do?
    calibrate generate joy-smollm2 --prompt "…"  unsteered and steered, side by side
    calibrate chat joy-smollm2                   talk to it
    calibrate grade joy-smollm2                  read replies blind: is it there to you?
    calibrate export joy-smollm2 --format gguf --to joy.gguf
    """  # noqa: D301 - \b keeps click from joining the lines
    if ctx.invoked_subcommand is None:
        _calibrate(**given)


def _calibrate(
    *,
    concept: str | None,
    out: Path | None,
    positives: Path | None,
    negatives: tuple[str, ...],
    describe: str | None,
    corpus: Path | None,
    prompts: Path | None,
    judge: str,
    audit: str,
    teacher: str | None,
    fetch_teacher: bool,
    storage: str | None,
    study: str | None,
    max_tokens: int | None,
    max_minutes: float | None,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Run the main job and print its result."""
    from calibrate.concept import read_concept
    from calibrate.cost import Limits

    concept = _named(concept)
    file, place, settings = _checked(negatives, prompts, rest)
    Limits(max_tokens, max_minutes)
    texts = None if describe else read_concept(concept, positives, file)

    from calibrate.calibration import calibrate
    from calibrate.judging import check_judges
    from calibrate.loading import load_model
    from calibrate.settings import Settings

    directory = out or Path(f"{_stem(concept)}-{_stem(place['model'])}")
    check_judges(judge, audit, Settings(**settings))
    with _working(quiet) as progress:
        loaded = load_model(**place, progress=progress)
        with _resumable(directory):
            result = calibrate(
                loaded,
                texts or _described(loaded, concept, describe, settings["seed"], progress),
                out=directory,
                prompts=prompts,
                corpus=corpus,
                judge=judge,
                audit=audit,
                teacher=teacher,
                fetch_teacher=fetch_teacher or _may_fetch(judge, teacher, texts),
                storage=storage,
                study=study,
                max_tokens=max_tokens,
                max_minutes=max_minutes,
                progress=progress,
                **settings,
            )
    _print_result(result.config, result.evidence, directory, as_json, quiet)


def _may_fetch(judge: str, teacher: str | None, concept: Any) -> bool:
    """Ask whether the teacher may be fetched, where one is wanted and somebody is there to ask."""
    from calibrate.judging import wants_fetching

    if not wants_fetching(judge, teacher, concept) or not sys.stdin.isatty():
        return False
    return click.confirm(
        "Nobody has graded replies for this concept. Fetch a teacher that does (qwen2.5-1.5b, "
        "1.1 GB, once)?",
        default=True,
        err=True,
    )


@cli.command()
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the config as JSON.")
def show(directory: Path, as_json: bool) -> None:
    """Print the summary of the calibration in DIR again."""
    from calibrate.config import load
    from calibrate.evidence import Evidence

    _print_result(load(directory), Evidence.load(directory), directory, as_json, quiet=False)


@cli.command()
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--model", type=TEXT, metavar="MODEL", help="Another place to load the model from.")
@click.option(
    "--corpus",
    type=FILE,
    metavar="FILE",
    help="Texts to measure cross-entropy on.  [default: the replies it was verified on]",
)
@click.option("--quick", is_flag=True, help="Check identity and reference only: seconds.")
@click.option(
    "--against",
    type=TEXT,
    metavar="STACK",
    help="Export to llama.cpp, peft or folded, and measure ΔCE in that stack as well.",
)
@click.option(
    "--gguf",
    type=FILE,
    metavar="FILE",
    help="The model for llama.cpp.  [default: the file the model came from]",
)
@options("device", "dtype", "batch-tokens", "revision", "trust-remote-code", "json")
def verify(
    directory: Path,
    model: str | None,
    corpus: Path | None,
    quick: bool,
    against: str | None,
    gguf: Path | None,
    dtype: str,
    as_json: bool,
    **place: Any,
) -> None:
    """Check that the config in DIR does what it says, on the model it will be used with.

    Exit status 0 if everything holds, 4 if anything does not: meant for deployment pipelines.
    """
    from calibrate.concept import read_lines
    from calibrate.config import load
    from calibrate.errors import AlteredError, VerificationFailed
    from calibrate.gate import check_directory, open_model
    from calibrate.report.summary import gate_summary
    from calibrate.stacks import check_stack, require_stack
    from calibrate.terminal import PatientConsole

    if dtype != "auto":
        place["dtype"] = dtype
    if against is not None:
        require_stack(against, gguf)
    if corpus is not None:
        read_lines(corpus)
    with _working(as_json) as progress:
        try:
            loaded = open_model(load(directory), model, progress=progress, **place)
        except AlteredError:  # the gate says so
            loaded = None
        report = check_directory(directory, loaded, corpus, quick, progress)
        if against is not None and loaded is not None and report.passed:
            report = report.with_check(check_stack(directory, loaded, against, gguf, progress))
    if as_json:
        say_json(_json(report.facts()))
    else:
        PatientConsole().print(gate_summary(report))
    if not report.passed:
        raise VerificationFailed("; ".join(report.failures))


@cli.command()
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--prompt", required=True, type=PROMPT, metavar="TEXT", help="What to reply to.")
@click.option("--strength", type=float, metavar="X", help="Another strength than the calibrated.")
@click.option("--model", type=TEXT, metavar="MODEL", help="Another place to load the model from.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print both replies as JSON.")
def generate(
    directory: Path,
    prompt: str,
    strength: float | None,
    model: str | None,
    max_tokens: int,
    seed: int,
    as_json: bool,
) -> None:
    """Reply to a prompt unsteered and steered, side by side, with the same noise.

    DIR is a calibration's directory, or an adapter or folded checkpoint exported from one.
    """
    from dataclasses import replace

    from calibrate.chat import open_steered
    from calibrate.completions import sample
    from calibrate.model import borrowed
    from calibrate.rendering import encode_prompt
    from calibrate.settings import Sampling, check_seed, finite_strength

    check_seed(seed)
    if strength is not None:
        finite_strength(strength)
    with (
        _working(as_json) as progress,
        open_steered(directory, model, progress) as opened,
        borrowed(opened.loaded),
    ):
        sampling = replace(Sampling(), max_new_tokens=max_tokens)
        encoded = [encode_prompt(opened.loaded, prompt)]
        _require_reply(opened.loaded, encoded[0], max_tokens)
        unsteered, steered = (
            sample(opened.loaded, encoded, sampling, seed, steering=opened.at(at))[0]
            for at in (0.0, strength)
        )
    used = opened.config.intervention.strength if strength is None else strength
    _print_replies(prompt, unsteered, steered, used, as_json)


@cli.command()
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--model", type=TEXT, metavar="MODEL", help="Another place to load the model from.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
def chat(directory: Path, model: str | None, max_tokens: int) -> None:
    """Talk to the steered model; /strength X steers otherwise, /off not at all.

    DIR is a calibration's directory, or an adapter or folded checkpoint exported from one.
    """
    from dataclasses import replace

    from calibrate.chat import HELP, Chat, open_steered
    from calibrate.errors import InputError
    from calibrate.model import borrowed
    from calibrate.settings import Sampling

    with (
        _working() as progress,
        open_steered(directory, model, progress) as opened,
        borrowed(opened.loaded),
    ):
        _require_reply(opened.loaded, None, max_tokens)
        progress.close()
        talk = Chat(
            opened,
            replace(Sampling(), max_new_tokens=max_tokens),
            opened.config.intervention.strength,
        )
        say(f"{talk.command('/concept')}\n{HELP}")
        while (line := _line(f"[{talk.strength:+.4g}] ")) not in (None, "/quit"):
            assert line is not None
            try:
                if line.startswith("/"):
                    say(talk.command(line))
                elif line:
                    talk.reply(utf8("what you type", line), lambda piece: say(piece, nl=False))
                    say()
            except InputError as error:
                say(error)


cli.command()(grade)


@cli.command(name="export")
@click.argument("directory", type=FILE, metavar="DIR")
@click.option("--format", "format_name", required=True, metavar="NAME", help=EXPORT_FORMATS)
@click.option(
    "--to",
    required=True,
    type=FILE,
    metavar="PATH",
    help="File or directory.",
)
@click.option("--model", type=TEXT, metavar="MODEL", help="Another place to load the model from.")
@click.option("--no-check", is_flag=True, help="Do not load it back and compare.")
@options("device", "revision", "trust-remote-code")
def export_config(
    directory: Path,
    format_name: str,
    to: Path,
    model: str | None,
    no_check: bool,
    **place: Any,
) -> None:
    """Write the config in DIR for a consumer, and check that it does there what it does here."""
    from calibrate.config import load
    from calibrate.export import check_request, export
    from calibrate.gate import open_model

    config = load(directory)
    check_request(config, format_name, to, directory)
    with _working() as progress:
        loaded = open_model(config, model, progress=progress, **place)
        written = export(config, format_name, to, loaded, check=not no_check, source=directory)
    if written.gap is None:
        say(f"wrote {written.path}, unchecked")
    else:
        say(
            f"wrote {written.path}; log-probabilities as in the calibration within "
            f"{written.gap:.1e} (at most {written.tolerance:g} will do)"
        )
    for line in written.serve:
        say(f"  {line}")


@cli.command()
@options(*LAWS)
@click.option(
    "--layer",
    "layers",
    type=int,
    multiple=True,
    metavar="N",
    help="Block to measure; may be repeated.  [default: early, middle and late]",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Resample the concept's texts this often, for error bars.",
)
def laws(
    *,
    concept: str | None,
    out: Path | None,
    positives: Path | None,
    negatives: tuple[str, ...],
    corpus: Path | None,
    prompts: Path | None,
    layers: tuple[int, ...],
    resamples: int,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Measure the paper's curves at some blocks, and draw them with the laws over them."""
    from calibrate.concept import read_concept
    from calibrate.workspace import LAWS_FILE, LAWS_PICTURES, require_free, wrote

    concept = _named(concept)
    file, place, settings = _checked(negatives, prompts, rest)
    texts = read_concept(concept, positives, file)
    directory = out or Path(f"{_stem(concept)}-{_stem(place['model'])}-laws")
    require_free(directory, LAWS_FILE, LAWS_PICTURES)

    from calibrate.curves import measure_laws
    from calibrate.files import write_together
    from calibrate.loading import load_model
    from calibrate.report.curves import law_pictures
    from calibrate.report.summary import laws_summary
    from calibrate.terminal import PatientConsole

    with _working(quiet) as progress:
        loaded = load_model(**place, progress=progress)
        curves = measure_laws(
            loaded,
            texts,
            layers=layers,
            prompts=prompts,
            corpus=corpus,
            resamples=resamples,
            progress=progress,
            **settings,
        )
    write_together(directory, law_pictures(curves), last=LAWS_FILE, ours=wrote)
    if as_json:
        say_json(curves.to_bytes().decode())
    else:
        PatientConsole().print(laws_summary(curves, directory))


@cli.command()
@click.argument("judge", type=TEXT, metavar="NAME|DIR")
@click.option(
    "--texts",
    required=True,
    type=FILE,
    metavar="FILE",
    help="Texts with a grade (0 not, 1 somewhat, 2 clearly) or a label, and perhaps a prompt, a "
    "condition and a second reader's grade_2: .jsonl, .json, .csv or .tsv.",
)
@click.option(
    "--concept",
    type=TEXT,
    metavar="CONCEPT",
    help="What a judge with a NAME looks for; for embedding a built-in concept or a file.",
)
@click.option(
    "--model",
    type=TEXT,
    metavar="MODEL",
    help="What probe and question read with.  [default: the probe's, or smollm2]",
)
@options("device", "dtype", "batch-tokens", "revision", "trust-remote-code", "json")
def judge(
    judge: str,
    texts: Path,
    concept: str | None,
    model: str | None,
    dtype: str,
    as_json: bool,
    **place: Any,
) -> None:
    """Hold a judge against people who read the same texts.

    NAME is a judge as in --judge; DIR, a finished calibration or a probe's directory, is the probe
    in it. The texts may come from anywhere, best from where the steered model will speak.
    """
    from dataclasses import asdict

    from calibrate.graded import read_graded

    graded = read_graded(texts)

    from calibrate.named_judges import open_judge
    from calibrate.report.judged import judge_summary
    from calibrate.terminal import PatientConsole
    from probes.validation import hold_against

    if dtype != "auto":
        place["dtype"] = dtype
    with _working(as_json) as progress:
        reader = open_judge(judge, concept, model, progress, **place)
        quality = hold_against(reader, graded)
    if as_json:
        say_json(_json(asdict(quality)))
    else:
        PatientConsole().print(judge_summary(quality))


@cli.command()
def concepts() -> None:
    """List the built-in concepts."""
    from rich.markup import escape
    from rich.table import Table

    from calibrate.concept import built_in_concepts, read_concept
    from calibrate.terminal import PatientConsole

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("concept", "texts", "expresses it", "does not"):
        table.add_column(f"[dim]{heading}[/]")
    for name in built_in_concepts():
        texts = read_concept(name).texts
        count = f"{len(texts.positives)} + {len(texts.negatives)}"
        shortest = min(
            zip(texts.positives, texts.negatives, strict=True),
            key=lambda pair: len(pair[0].text) + len(pair[1].text),
        )
        table.add_row(f"[bold]{name}[/]", count, *(escape(text.text) for text in shortest))
    PatientConsole().print(table)


def main() -> None:
    """Run the command line and exit with the status the contract names."""
    with printing(), warnings_as_notes():
        status = _status()
    sys.exit(status)


def _status() -> int:
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), EXIT_INPUT)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except Interrupted as error:
        return _complain(str(error), EXIT_INTERRUPTED)
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        return _complain(_in_words(error), status)
    return 0


def _status_of(error: Exception) -> int | None:
    """Print the reasons of an infeasible request; return the status, None if unexpected."""
    from calibrate.errors import Infeasible, InputError, VerificationFailed, WrittenElsewhere

    if isinstance(error, WrittenElsewhere):
        return 0
    if isinstance(error, Infeasible):
        for advice in error.advice:
            say(f"could be tried: {advice}", err=True)
        return EXIT_INFEASIBLE
    if isinstance(error, InputError):
        return EXIT_INPUT
    if isinstance(error, VerificationFailed):
        return EXIT_VERIFICATION
    if isinstance(error, OSError | MemoryError) or _out_of_memory(error):
        return EXIT_INPUT
    return None


def _out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory, without importing it to ask."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return (
            "memory must suffice for the model and one text, and it does not; give --dtype "
            "bfloat16, a smaller --batch-tokens, or another --device"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def _working(quiet: bool = False) -> Iterator[TerminalProgress]:
    """Show progress on stderr, and leave to others the cores that are theirs."""
    from calibrate.terminal import PatientConsole, TerminalProgress
    from calibrate.threads import use_idle_cores

    use_idle_cores()
    with TerminalProgress(PatientConsole(stderr=True, quiet=quiet)) as progress:
        yield progress


class Interrupted(Exception):
    """Ctrl-C during a calibration that can be resumed."""


@contextmanager
def _resumable(directory: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; finished trials are kept in {directory}, and the same command "
            "goes on from there"
        ) from None


def _complain(message: str, status: int) -> int:
    say(f"calibrate: {' '.join(message.split())}", err=True)
    return status


def _negatives(given: tuple[str, ...]) -> tuple[str, Path | None]:
    """Tell the kind of negatives from a file of them; both may be given."""
    kinds = [value for value in given if value in NEGATIVE_KINDS]
    files = [Path(value) for value in given if value not in NEGATIVE_KINDS]
    if len(kinds) > 1 or len(files) > 1:
        raise click.UsageError(
            f"--negatives takes one of {' or '.join(NEGATIVE_KINDS)}, and one file, got "
            f"{', '.join(given)}"
        )
    return (kinds[0] if kinds else NEGATIVE_KINDS[0]), (files[0] if files else None)


def _checked(
    negatives: tuple[str, ...], prompts: Path | None, rest: dict[str, Any]
) -> tuple[Path | None, dict[str, Any], dict[str, Any]]:
    """Refuse what can be refused at once, before torch is imported.

    Returns: the file of negatives, if one was given; the arguments of `load_model`; the settings.
    """
    from calibrate.concept import read_prompts
    from calibrate.rows import decoded
    from calibrate.settings import Sampling, Settings

    place, settings = apart(rest, MODEL)
    settings["negatives"], file = _negatives(negatives)
    settings["sampling"] = Sampling(max_new_tokens=settings.pop("reply_tokens"))
    if settings.get("judge_question") is not None:
        settings["judge_question"] = decoded(settings["judge_question"])
    Settings(**settings)
    read_prompts(prompts)
    return file, place, settings


def _json(facts: Any) -> str:
    return json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False)


def _require_reply(loaded: LoadedModel, prompt: Prompt | None, max_tokens: int) -> None:
    """Refuse a prompt that nothing follows, and a reply that the context has no room for."""
    from calibrate.errors import InputError

    if prompt is not None and not (loaded.is_chat or (prompt.text.strip() and prompt.ids)):
        raise InputError(
            f"--prompt must be a text that a base model can go on from, got {prompt.text!r}"
        )
    used = 1 if prompt is None else len(prompt.ids)
    if used + max_tokens > loaded.context_length:
        raise InputError(
            f"--max-tokens must leave room in the context of {loaded.context_length} tokens for "
            f"the prompt's {used}, got {max_tokens}; give at most {loaded.context_length - used}"
        )


def _line(prompt: str) -> str | None:
    """A line the user types; None at the end of input."""
    try:
        return input(prompt).strip()
    except EOFError:
        return None


def _named(concept: str | None) -> str:
    if concept is None:
        raise click.UsageError("--concept is missing; `calibrate concepts` lists the built-in ones")
    return concept


def _stem(name: str) -> str:
    """The part of a model's or concept's name that can name a directory."""
    return Path(name).name.removesuffix(".jsonl").removesuffix(".gguf") or "model"


def _described(
    loaded: LoadedModel, name: str, description: str | None, seed: int, progress: Progress
) -> Concept:
    from calibrate.describe import describe_concept
    from calibrate.model import borrowed

    assert description is not None
    progress.began("writing texts", None)
    try:
        with borrowed(loaded):
            return describe_concept(loaded, name, description, seed)
    finally:
        progress.ended("writing texts")


def _print_result(
    config: SteeringConfig, evidence: Evidence, directory: Path, as_json: bool, quiet: bool
) -> None:
    if as_json:
        say_json(config.model_dump_json(indent=2))
        return
    from calibrate.report.summary import headline, summary
    from calibrate.terminal import PatientConsole

    console = PatientConsole()
    console.print(headline(config), soft_wrap=True)
    if not quiet:
        console.print(summary(config, evidence, directory))


def _print_replies(
    prompt: str, unsteered: Completion, steered: Completion, strength: float, as_json: bool
) -> None:
    replies = {"unsteered": unsteered, "steered": steered}
    if as_json:
        texts = {which: reply.text for which, reply in replies.items()}
        answered = {which: reply.answered for which, reply in replies.items()}
        say_json(_json({"prompt": prompt, "strength": strength, **texts, "answered": answered}))
        return
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    from calibrate.terminal import PatientConsole

    titles = ("unsteered", f"α = {strength:+.4g}")
    panels = [
        Panel(Text(_shown(reply)), title=title, width=48)
        for title, reply in zip(titles, replies.values(), strict=True)
    ]
    PatientConsole().print(Columns(panels))


def _shown(reply: Completion) -> str:
    if reply.answered:
        return reply.text
    return f"(still thinking after {reply.sequence.n_scored} tokens; --max-tokens allows more)"
