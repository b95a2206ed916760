"""Sections of the config: what was measured at the verified strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calibrate.common.estimate import Interval
from calibrate.common.record import Section


@dataclass(frozen=True)
class DeltaCESection(Interval):
    """ΔCE on held-out text; `upper` is the verified one-sided bound.

    corpus: "own_replies", where the exact KL stands for ΔCE, or "file".
    """

    upper: float
    corpus: Literal["own_replies", "file"]
    n_sequences: int
    n_tokens: int


class PresenceScaleSection(Section):
    """Whose judgement presence predicts, and how that was checked.

    source, teacher, n_texts: as in `probes.Learned`. auc, calibration_error: of the study's probe,
    out of fold, against readers' grades ("graded"), the teacher's ("taught"), or the labels of
    held-out texts ("written").
    """

    source: Literal["graded", "taught", "written"]
    teacher: str | None
    n_texts: dict[str, int]
    auc: Interval
    calibration_error: Interval

    @property
    def says(self) -> str:
        """The same in words."""
        source = {
            "graded": "readers', learned from {readers} replies that they graded and {teacher} "
            "that a teacher did",
            "taught": "a teacher's, learned from {teacher} texts that it graded",
            "written": "a guess, learned from written texts alone ({positive} and {negative}); "
            "to check it: calibrate grade",
        }[self.source].format(**self.n_texts)
        return f"{source}; AUC {self.auc.value:.2f} on texts it had not seen"


@dataclass(frozen=True)
class PresenceSection(Interval):
    """Presence: the share of replies of which a reader would say yes, by the judge.

    Measured at the strength, and at α = 0 (baseline) on the same prompts with the same noise.
    change: the paired difference from the baseline, from n_replies to each prompt. detectable: the
    smallest change that would have been told from 0 with a probability of 80 %.
    explained_by_length: the change that longer or shorter replies alone would make, by how presence
    depends on length among unsteered replies. n_prompts, n_completions: prompts and replies that
    count, those with text. empty, empty_baseline: share of replies without text. unanswered,
    unanswered_baseline: share of replies that end inside the thought, before any answer. clear,
    clear_baseline: share that clearly expresses the concept, where the judge can tell. scale: whose
    judgement it is; None where no probe read. detectable and empty are None in older configs.
    """

    baseline: float
    baseline_interval: tuple[float, float]
    change: Interval
    explained_by_length: float
    n_prompts: int
    n_completions: int
    n_replies: int = 2
    detectable: float | None = None
    empty: float | None = None
    empty_baseline: float | None = None
    unanswered: float = 0.0
    unanswered_baseline: float = 0.0
    clear: float | None = None
    clear_baseline: float | None = None
    scale: PresenceScaleSection | None = None


@dataclass(frozen=True)
class AuditSection(Interval):
    """Presence in the same replies, by a second judge.

    agreement: Spearman's rank correlation of the two judges over all replies that are not empty.
    opinion: its change "confirms" the first judge's; or it "sees no change", although half of that
    one would have shown; or it "cannot tell". None in older configs.
    """

    judge: str
    baseline: float
    change: Interval
    agreement: float
    opinion: Literal["confirms", "sees no change", "cannot tell"] | None = None

    @property
    def says(self) -> str:
        """The opinion as a sentence; empty where there is none."""
        if self.opinion is None:
            return ""
        rest = {"confirms": " the change", "cannot tell": " whether there is one"}
        return f"the second judge {self.opinion}{rest.get(self.opinion, '')}"


class ControlsSection(Section):
    """Presence without the concept's own vector: what any vector, or a plain request, does.

    random_vector: a random vector of the same norm at the same strength and block.
    prompt_only: unsteered, asked in plain words for the concept (or its absence).
    """

    random_vector: Interval
    prompt_only: Interval


class FluencySection(Section):
    """How the steered replies read to the unsteered model, and how repetitive they are.

    log_prob: mean log-probability per token under the unsteered model, nats. drop: how much lower
    it is than the baseline's, by prompt; drop_upper: its one-sided bound. distinct_2: distinct
    token pairs per token pair, in [0, 1]. longest_loop: share of a reply's tokens in its longest
    loop, in [0, 1]. n_tokens: mean length of a reply.
    """

    log_prob: float
    log_prob_baseline: float
    drop: Interval
    drop_upper: float
    distinct_2: float
    distinct_2_baseline: float
    longest_loop: float
    longest_loop_baseline: float
    n_tokens: float
    n_tokens_baseline: float


class AlongSection(Section):
    """Replies along their length, one value for each window of tokens.

    loops: share of the tokens in loops, in [0, 1]. presence: in the windows' texts, None where
    there was no text. log_prob: mean over tokens under the unsteered model, nats.
    n_replies: how many replies reach the window.
    """

    loops: list[float]
    presence: list[float | None]
    log_prob: list[float]
    n_replies: list[int]


class LongRunSection(Section):
    """Replies as long as those the model serves.

    n_tokens: their limit. window: tokens in a window. loops, loops_baseline: mean share of a
    reply's tokens in loops, steered and unsteered. loop_excess: the paired difference, whose
    value may be at most margin.
    """

    n_tokens: int
    n_prompts: int
    window: int
    loops: float
    loops_baseline: float
    loop_excess: Interval
    margin: float
    steered: AlongSection
    unsteered: AlongSection


class GuardSection(Section):
    """How often questions with known answers are answered rightly (`calibrate.texts.guard`).

    name, sha256: of the guard. accuracy, baseline: steered and unsteered, in [0, 1]. drop: by how
    much it falls, paired; drop_upper: its one-sided bound.
    """

    name: str
    sha256: str
    n_questions: int
    accuracy: Interval
    baseline: float
    drop: Interval
    drop_upper: float


class ShareSection(Section):
    """A share of replies by people's grades, before (unsteered) and after, and the change."""

    before: Interval
    after: Interval
    change: Interval


class AgreementSection(Section):
    """How two graders agree on whether replies express the concept at least somewhat.

    alike: share of the n_replies graded by both on which they agree. kappa: Cohen's, 0 for chance
    and 1 for full agreement; None where all replies are alike to both.
    """

    graders: tuple[str, str]
    n_replies: int
    alike: float
    kappa: float | None


class ScaleSection(Section):
    """How grades correct the probe: its log-odds times `slope` plus `offset`.

    method: "unchanged", "offset", or "slope and offset", whichever predicts left-out grades best;
    all are shrunk towards no correction. log_loss, log_loss_before: of left-out grades, nats.
    """

    method: Literal["unchanged", "offset", "slope and offset"]
    slope: float
    offset: float
    log_loss: float
    log_loss_before: float


class ReadersSection(Section):
    """Presence by people who read final replies without knowing which are steered.

    n_replies, n_prompts: graded. n_judged: prompts that only the judge read; its scores are
    corrected by the grades (prediction-powered inference). presence: share of replies graded 1
    or 2. clearly: share graded 2. judge_auc: how often the judge ranks a reply graded yes above
    one graded no; None where all grades are alike. judge_level: how much more presence it reads
    than people do in the same replies. scale: None where the judge is no probe, or was not
    corrected.
    """

    graders: list[str]
    n_replies: int
    n_prompts: int
    n_judged: int
    presence: ShareSection
    clearly: ShareSection
    judge_auc: Interval | None
    judge_level: Interval
    agreement: list[AgreementSection]
    scale: ScaleSection | None = None


class MeasuredSection(Section):
    """Everything measured, all of it on held-out data.

    judges: who read presence, and the auditor if there was one, by name. long_run: None where
    none was asked for, or the model's context has no room for one. guard: None where none was
    asked for. readers: None until people have graded replies (`calibrate grade`). A calibration
    that began with an earlier one has neither controls nor audit; one that was picked from it has
    controls.
    """

    judges: list[str]
    delta_ce: DeltaCESection
    presence: PresenceSection
    audit: AuditSection | None
    controls: ControlsSection | None = None
    fluency: FluencySection
    long_run: LongRunSection | None = None
    guard: GuardSection | None = None
    readers: ReadersSection | None = None

    @property
    def not_repeated(self) -> str:
        """What was left to an earlier calibration, in words; empty where nothing was."""
        return "" if self.controls else "; controls and second judge were not repeated"
