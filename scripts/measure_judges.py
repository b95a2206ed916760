"""Hold every judge against readers, on replies that no judge has seen, and write docs/judges.md.

    python scripts/measure_judges.py [--page]

The replies are the test part of scripts/graded: two models, eight concepts, plain and steered. Each
judge reads a model's replies with what it would have in a calibration of that model. Half an hour
on two cores; what was read is kept in docs/judges.json, and not read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

import click
import numpy as np
from graded_replies import MODELS, Reply, replies
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from scipy.special import expit
from ship_graded_replies import FOR_SCALE
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from calibrate import load_model
from calibrate.common.settings import Settings
from calibrate.judging.graded_replies import graded_replies, written_scale
from calibrate.judging.panel import judge_from_texts, written_examples
from calibrate.judging.ppi import corrected_share
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.texts.concept import Texts, built_in_concepts, read_concept, read_prompts
from calibrate.texts.replies import sample_unsteered
from probes import GradedText, fit_written_probe
from probes.classifier import fit_embedding
from probes.features import text_features
from probes.judges import Judge
from probes.scale import Scale, fit_platt, log_odds
from probes.student import CERTAIN, Student, fit_student, probe_layers

TARGET = DOCS / "judges.json"
DECIMALS = 5  # of a score: with three, ranks of a rare concept are lost
SENTIMENTS = {"joy": 1, "optimistic": 1, "depression": -1}  # and the sign of VADER's agreement
CONDITIONS = ("0", "-1.5", "1", "2", "primed", "broken")
NAMES = {
    "0": "plain",
    "-1.5": "-1.5 α",
    "1": "α",
    "2": "2 α",
    "primed": "primed",
    "broken": "broken",
}
FEW, RESAMPLINGS = 40, 200
FEW_YES = 30  # replies with a yes below which a concept's own figure says little
NO_LEVEL = ("VADER", "teacher")  # no probabilities, or of chosen replies
MIN_OF_A_CELL = 8  # replies that judge and readers read
MIN_PAIRS = 25  # prompts with a plain and a steered reply, of which FEW / 2 are drawn
TAUGHT = (36, 0)  # grades of the teacher that a student learns from; 0 for all of about 70
Scores = dict[str, float]  # by reply


@click.command()
@page_option
def main(only_page: bool) -> None:
    found = kept()
    for judge in [] if only_page else [judge for judge in READ if judge not in found]:
        found[judge] = READ[judge]()
        keep(found)
        click.echo(judge)
    (DOCS / "judges.md").write_text(page(kept()), encoding="utf-8")


def kept() -> dict[str, Scores]:
    """By judge, in the order of READ, what it says of the replies that it read."""
    facts = read_records(TARGET)
    scores: dict[str, Scores] = {judge: {} for judge in facts.get("judges", ())}
    for group, rows in facts.get("scores", {}).items():
        for number, *said in rows:
            for judge, score in zip(scores, said, strict=False):
                if score is not None:
                    scores[judge][f"{group}-{number}"] = score
    return {judge: scores[judge] for judge in READ if judge in scores}


def keep(scores: dict[str, Scores]) -> None:
    """By model and concept, a reply a line: its number, then what each judge says, or null.

    Who read most comes first, so that nulls gather at the end, where they are left out.
    """
    judges = sorted(scores, key=lambda judge: -len(scores[judge]))
    groups: dict[str, list[list[Any]]] = {}
    for one in sorted({reply for judge in judges for reply in scores[judge]}):
        group, number = one.rsplit("-", 1)
        said = [scores[judge].get(one) for judge in judges]
        while said[-1] is None:
            said.pop()
        rounded = [score if score is None else round(score, DECIMALS) for score in said]
        groups.setdefault(group, []).append([int(number), *rounded])
    rows = {group: sorted(of_group, key=lambda row: row[0]) for group, of_group in groups.items()}
    write_records(TARGET, {"judges": judges, "scores": rows})


def by_teacher() -> Scores:
    """On the scale of readers, which is fitted to the train parts of all other concepts."""
    return {
        one.id: float(scale_without(concept)(log_odds(one.taught, CERTAIN)))
        for concept in built_in_concepts()
        for one in replies("test", concept)
        if one.taught is not None
    }


def scale_without(concept: str) -> Scale:
    """What the teacher's log-odds say of readers' yes, by the concepts beside this one."""
    read = [
        one
        for other in built_in_concepts()
        if other != concept
        for one in graded_replies(other)
        if one.taught is not None
    ]
    scale = fit_platt(
        log_odds([one.taught for one in read], CERTAIN),
        np.array([one.says_yes for one in read]),
    )
    assert scale is not None
    return scale


class Library:
    """Models, and the features they have of texts, read once."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[LoadedModel, dict[str, int], np.ndarray]] = {}

    def model(self, name: str) -> LoadedModel:
        return self._read(name)[0]

    def features(self, name: str, texts: Sequence[str]) -> np.ndarray:
        _, rows, features = self._read(name)
        return features[:, [rows[text] for text in texts]]

    def _read(self, name: str) -> tuple[LoadedModel, dict[str, int], np.ndarray]:
        if name not in self._of:
            loaded = load_model(name)
            known = [one.text for concept in built_in_concepts() for one in graded_replies(concept)]
            mine = [one.text for one in replies("test") if one.model == name]
            texts = list(dict.fromkeys(known + mine))
            with preserving_model_state(loaded):
                features = text_features(loaded, texts, probe_layers(loaded.num_layers))
            self._of[name] = loaded, {text: row for row, text in enumerate(texts)}, features
        return self._of[name]


LIBRARY = Library()


def by_student(
    choose: Callable[[str], tuple[Sequence[GradedText], Scale | None]],
) -> Callable[[], Scores]:
    """What a probe says that learned from what is chosen for the concept."""

    def read() -> Scores:
        return dict(of_students(choose))

    return read


def of_students(
    choose: Callable[[str], tuple[Sequence[GradedText], Scale | None]],
) -> Iterator[tuple[str, float]]:
    for name in MODELS:
        for concept in built_in_concepts():
            texts, scale = choose(concept)
            if not texts:
                continue
            learned = LIBRARY.features(name, [one.text for one in texts])
            student = fit_student(texts, learned)
            if scale is not None:
                student = replace(student, yes=scale)
            mine = [one for one in replies("test", concept) if one.model == name]
            yield from zip(
                (one.id for one in mine),
                said_by(student, LIBRARY.features(name, [one.text for one in mine])),
                strict=True,
            )


def said_by(student: Student, features: np.ndarray) -> list[float]:
    scores = np.einsum("lth,lh->t", features, student.weights) + student.bias
    read = features.any(axis=(0, 2))
    return [float(p) for p in np.where(read, student.yes(scores), 0.0)]


def graded(concept: str) -> tuple[Sequence[GradedText], Scale | None]:
    return graded_replies(concept), None


def taught_first(concept: str) -> tuple[Sequence[GradedText], Scale | None]:
    """Readers' grades in the place of the teacher's, of the same texts."""
    return [one for one in graded_replies(concept) if one.taught is not None], None


def taught(n: int) -> Callable[[str], tuple[Sequence[GradedText], Scale | None]]:
    """The teacher's grades alone, on a scale that knows nothing of the concept."""

    def choose(concept: str) -> tuple[Sequence[GradedText], Scale | None]:
        texts = [
            replace(one, grade=None) for one in graded_replies(concept) if one.taught is not None
        ]
        order = np.random.default_rng(0).permutation(len(texts))[: n or None]
        return [texts[row] for row in order], scale_without(concept)

    return choose


def by_written() -> Scores:
    """A probe that learned from written texts, on the scale of what ships.

    That scale was fitted to readers' grades of the train part of the same concepts.
    """
    found: Scores = {}
    for name in MODELS[:1]:
        loaded = LIBRARY.model(name)
        own = sample_unsteered(loaded, read_prompts(), Settings(), ("probe",)).first_replies(
            "probe"
        )
        for concept in FOR_SCALE:
            splits = read_concept(concept).split()
            probe = fit_written_probe(
                concept,
                written_examples(splits["probe"]),
                written_examples(splits["held_out"]),
                [one.text for one in own],
                loaded,
                written_scale(),
            )
            mine = [one for one in replies("test", concept) if one.model == name]
            found.update(
                zip(
                    (one.id for one in mine),
                    map(float, probe.score([one.text for one in mine], loaded)),
                    strict=True,
                )
            )
    return found


def by_embedding() -> Scores:
    """The second judge, which learned from graded replies of its own."""
    return of_embedding(lambda concept, texts: judge_from_texts("embedding", concept, texts))


def by_embedding_of_written() -> Scores:
    return of_embedding(lambda _, texts: fit_embedding(written_examples(texts)))


def of_embedding(fitted: Callable[[str, Texts], Judge]) -> Scores:
    found: Scores = {}
    for concept in built_in_concepts():
        judge = fitted(concept, read_concept(concept).split()["probe"])
        mine = [one for one in replies("test", concept) if one.text.strip()]
        said = judge.score([one.text for one in mine], concept)
        found.update(zip((one.id for one in mine), map(float, said), strict=True))
    return found


def by_vader() -> Scores:
    analyser = SentimentIntensityAnalyzer()
    return {
        one.id: float(expit(sign * 2 * analyser.polarity_scores(one.text)["compound"]))
        for concept, sign in SENTIMENTS.items()
        for one in replies("test", concept)
    }


READ: dict[str, Callable[[], Scores]] = {
    "teacher": by_teacher,
    "VADER": by_vader,
    "embedding": by_embedding,
    "embedding, written": by_embedding_of_written,
    "probe, graded": by_student(graded),
    "probe, graded, the texts that were taught": by_student(taught_first),
    **{f"probe, taught by {n or 'all'}": by_student(taught(n)) for n in TAUGHT},
    "probe, written": by_written,
}


def page(scores: dict[str, Scores]) -> str:
    test = replies("test")
    return PAGE.format(
        in_short=in_short(test, scores["probe, graded"]),
        n_twice=sum(len(one.readings) > 1 for one in replies()),
        n_once=sum(len(one.readings) == 1 for one in replies()),
        n_test=sum(bool(one.readings) for one in test),
        n_band=sum(one.at_band for one in replies("train")),
        n_second=sum(bool(one.readings) for one in replies("second")),
        taught=what_was_taught(),
        readers=readers_table(test),
        auc=auc_table(test, scores, 1),
        clearly=auc_table(test, scores, 2),
        cells=cells_table(test, scores),
        levels=levels_table(test, scores),
        few=few_table(test, scores["probe, graded"]),
    )


def in_short(test: Sequence[Reply], probe: Scores) -> str:
    """What the default probe is worth, in two sentences."""
    ranks, limits, rare = [], [], {}
    for concept in built_in_concepts():
        rows = [one for one in of(test, concept) if one.id in probe]
        ranks.append(auc(np.array([probe[one.id] for one in rows]), yes(rows)))
        limits.append(limit(of(test, concept), 1))
        if (count := int(yes(of(test, concept)).sum())) < FEW_YES:
            rare[concept] = count
    probes, readings = (
        np.mean([one for one in found if one is not None]) for found in (ranks, limits)
    )
    within = np.mean([abs(gap) <= 0.10 for _, _, gap, _ in cells(test, probe)])
    text = (
        f"**In short:** the default probe ranks replies as readers do with an AUC of {probes:.2f}, "
        f"where one reading reaches {readings:.2f} against the other, and its level is within .10 "
        f"of theirs in {within:.0%} of the cells. Of {', '.join(rare)} readers said yes to "
        f"{min(rare.values())} to {max(rare.values())} replies, too few to rely on a concept's own "
        "figure. No person has graded any."
    )
    return fill(text, 100)


def what_was_taught() -> str:
    """How much the teacher read."""
    counts = {
        part: Counter(one.concept for one in replies(part) if one.taught is not None)
        for part in ("train", "test")
    }
    train, test = (sorted(counts[part].values()) for part in ("train", "test"))
    text = (
        f"The teacher read {test[0]} to {test[-1]} replies of {len(test)} concepts in the test "
        "part, first those of which readers say yes where these are few, and "
        f"{train[0]} to {train[-1]} of {len(train)} in the train part."
    )
    return fill(text, 100)


def of(rows: Sequence[Reply], concept: str, condition: str | None = None) -> list[Reply]:
    """Replies that readers read, of a concept and a condition."""
    return [
        one
        for one in rows
        if one.concept == concept and condition in (None, one.condition) and one.readings
    ]


def yes(rows: Sequence[Reply]) -> np.ndarray:
    return np.array([one.grade is not None and one.grade >= 1 for one in rows])


def first_two(rows: Sequence[Reply]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.array([one.readings[reading] for one in rows]) for reading in (0, 1))
    return first, second


def readers_table(test: Sequence[Reply]) -> str:
    body = []
    for concept in built_in_concepts():
        rows = of(test, concept)
        first, second = first_two(rows)
        kappa = cohen_kappa_score(first, second, weights="linear")
        shares = [f"{yes(of(test, concept, name)).mean():.2f}" for name in CONDITIONS]
        differ = f"{(first != second).mean():.2f}"
        body.append([concept, str(len(rows)), f"{kappa:.2f}", differ, *shares])
    names = [NAMES[name] for name in CONDITIONS]
    return table(["concept", "replies", "weighted kappa", "differ", *names], body)


def limit(rows: Sequence[Reply], least: int) -> float | None:
    """AUC of one reading against the other's yes, both ways, on average."""
    first, second = first_two(rows)
    both = [auc(first, second >= least), auc(second, first >= least)]
    found = [one for one in both if one is not None]
    return float(np.mean(found)) if len(found) == len(both) else None


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else None


def auc_table(test: Sequence[Reply], scores: dict[str, Scores], least: int) -> str:
    body, columns = [], []
    for concept in built_in_concepts():
        rows = of(test, concept)
        truth = np.array([(one.grade or 0) >= least for one in rows])
        found = [limit(rows, least)]
        for judge in scores.values():
            there = [row for row, one in enumerate(rows) if one.id in judge]
            said = np.array([judge[rows[row].id] for row in there])
            found.append(auc(said, truth[there]) if there else None)
        columns.append(found)
        body.append([concept, str(int(truth.sum())), *map(shown, found)])
    means = []
    for column in zip(*columns, strict=True):
        there = [one for one in column if one is not None]
        of_some = f" (of {len(there)})" if len(there) < len(column) else ""
        means.append(f"{np.mean(there):.3f}{of_some}" if there else "-")
    return table(["concept", "yes", "other reading", *scores], [*body, ["mean", "", *means]])


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def cells(test: Sequence[Reply], judge: Scores) -> Iterator[tuple[str, str, float, float]]:
    """Concept, condition, and how far level and change from plain are off the readers'."""
    for concept in built_in_concepts():
        levels = {}
        for condition in CONDITIONS:
            rows = [one for one in of(test, concept, condition) if one.id in judge]
            if len(rows) >= MIN_OF_A_CELL:
                said = float(np.mean([judge[one.id] for one in rows]))
                levels[condition] = said, float(yes(rows).mean())
        if "0" not in levels:
            continue
        plain_said, plain_read = levels["0"]
        for condition, (said, read) in levels.items():
            yield concept, condition, said - read, said - plain_said - (read - plain_read)


def cells_table(test: Sequence[Reply], scores: dict[str, Scores]) -> str:
    body = []
    for name, judge in scores.items():
        if name in NO_LEVEL:
            continue
        found = list(cells(test, judge))
        steered = [gap for _, condition, _, gap in found if condition != "0"]
        broken = [
            float(np.mean([judge.get(one.id, 0.0) for one in of(test, concept, "broken")]))
            for concept in built_in_concepts()
            if all(one.id in judge for one in of(test, concept, "broken") if one.text.strip())
        ]
        level = [abs(gap) <= 0.10 for _, _, gap, _ in found]
        change = [abs(gap) <= 0.08 for gap in steered]
        body.append(
            [
                name,
                str(len(found)),
                f"{np.mean(level):.0%}",
                f"{np.mean(change):.0%}",
                shown(float(np.mean(broken)) if broken else None),
                shown(max(broken, default=None)),
            ]
        )
    return table(
        [
            "judge",
            "cells",
            "level within .10",
            "change within .08",
            "broken text, mean",
            "broken text, worst concept",
        ],
        body,
    )


def levels_table(test: Sequence[Reply], scores: dict[str, Scores]) -> str:
    judges = ("probe, graded", "probe, taught by all", "embedding")
    body = []
    for concept in built_in_concepts():
        for condition in CONDITIONS:
            rows = of(test, concept, condition)
            said = [mean_of(scores[judge], rows) for judge in judges]
            share = f"{yes(rows).mean():.2f}"
            body.append([concept, NAMES[condition], str(len(rows)), share, *said])
    return table(["concept", "condition", "replies", "readers", *judges], body)


def mean_of(judge: Scores, rows: Sequence[Reply]) -> str:
    """The judge's mean, where it read all of the replies that are not empty."""
    if not all(one.id in judge for one in rows if one.text.strip()):
        return "-"
    return f"{np.mean([judge.get(one.id, 0.0) for one in rows]):.2f}"


def few_table(test: Sequence[Reply], judge: Scores) -> str:
    """Presence by the judge and FEW grades of readers, drawn again and again."""
    body, covered = [], []
    rng = np.random.default_rng(0)
    for concept in built_in_concepts():
        pairs = paired(test, concept)
        if len(pairs) < MIN_PAIRS:
            continue
        cells = [concept, str(len(pairs))]
        for place in (0, 1):
            read = np.array([float(yes([pair[place]])[0]) for pair in pairs])
            said = np.array([judge.get(pair[place].id, 0.0) for pair in pairs])
            found = [few(rng, read, said) for _ in range(RESAMPLINGS)]
            gaps, inside = zip(*found, strict=True)
            covered.append(np.mean(inside))
            cells += [
                f"{read.mean():.2f}",
                f"{said.mean():.2f}",
                f"{np.mean(gaps):.3f}",
                f"{np.mean(inside):.0%}",
            ]
        body.append(cells)
    heads = ["readers", "probe", "mean error", "covered"]
    return table(
        ["concept", "prompts", *(f"{name}, {head}" for name in ("plain", "α") for head in heads)],
        [*body, ["mean", "", *[""] * 7, f"{np.mean(covered):.0%}"]],
    )


def paired(test: Sequence[Reply], concept: str) -> list[tuple[Reply, Reply]]:
    """Plain and steered replies of a model to the same prompt."""
    plain = {(one.model, one.prompt): one for one in of(test, concept, "0")}
    steered = {(one.model, one.prompt): one for one in of(test, concept, "1")}
    return [(plain[key], steered[key]) for key in sorted(plain.keys() & steered.keys())]


def few(rng: np.random.Generator, read: np.ndarray, said: np.ndarray) -> tuple[float, bool]:
    """How far presence is off that of all readers, and whether its interval holds that."""
    order = rng.permutation(len(read))
    graded, others = order[: FEW // 2], order[FEW // 2 :]
    found = corrected_share(read[graded], said[graded], said[others])
    interval, truth = found.interval(0.95), float(read.mean())
    return abs(found.value - truth), interval.low <= truth <= interval.high


PAGE = """# Do judges agree with readers?

Written by `scripts/measure_judges.py`; what every judge says of every reply is in
[judges.json](judges.json).

{in_short}

## Who read, and what

{n_twice} replies of smollm2 and gemma3-270m were read twice, and {n_once} more for training once
({n_second} of them for the second judge), each for one of eight concepts, and graded 0 (not),
1 (somewhat) or 2 (clearly) by the rubrics of `calibrate/texts/rubrics.py`. **The readers are a
large language model in separate readings, not people.** Each reading was of the text alone, in
random order, blind to model and condition and to the other reading; where two differed, a third
decided. No judge, lexicon or script gave a grade. Prompts are split into train, tune and test;
{n_test} replies are in the test part, which all tables here are about, and which nothing was fitted
on; three choices were made with it in view, though: which blocks the probe reads (six instead of
four brought .005), that readers' grades go before the teacher's, and, by other replies to 30 of its
prompts, for which concepts the train part has replies steered at the default band. Replies are
plain; steered at the middle block by shares of α at a budget of 0.1 nat; primed by replies that
express the concept; or broken by far too large a strength. The train part also has {n_band} replies
of humorous and impolite, steered at the default band: without them their probes saw less than half
of the change that readers saw there ([concepts.md](concepts.md) has today's). The train part, and
what a teacher (qwen2.5-1.5b) says of some of it, come with the packs
(`calibrate/texts/concepts/graded`).

Steering at the middle block hardly moves some of these concepts, so that they have few replies with
a yes; what is said of lying, impolite and apathetic rests on 6 to 14 of them.

Share of replies of which readers say yes, at least somewhat, by condition:

{readers}
## Who ranks replies as readers do

AUC for a grade of 1 or more; the limit is what one reading reaches against the other. Students are
ridge regressions on the token means of the model that wrote the reply. `graded` learned from the
train part; `taught by n` from n grades of the teacher, with the concept left out of everything
else; `written` from the pack's written texts (four concepts on smollm2). The scale that puts
`written` on the readers' level was fitted to their grades of the train part of these very four, so
that its level and change are flattered, and its ranks are not: a concept of one's own has no such
grades. The embedding judge learned from graded replies of its own, or from written texts.

{taught}

{auc}
AUC for a grade of 2:

{clearly}
## Whose level is the readers'

A cell is a concept and a condition, both models together: 12 to 72 replies. Level: the judge's mean
against the readers' share. Change: the same, less that of plain replies. A cell of 64 replies has a
sampling error of its own of about .05 where the judge is unsure.

{cells}
{levels}
## With forty grades of one's own

`calibrate grade` corrects the probe's many readings by a few grades (prediction-powered inference).
Here forty replies, the plain and the steered one to each of twenty prompts, are drawn 200 times
from the test part of a concept at α; the truth is what readers say of all of them. Shown are
concepts with 25 prompts or more; what is drawn is a good part of them, which flatters the
intervals.

{few}"""


if __name__ == "__main__":
    main()
