"""A finished calibration in its directory: written all or nothing, and read again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import probes
from calibrate.artefact import report
from calibrate.artefact.assemble_frontier import with_others
from calibrate.artefact.config import CONFIG_FILE, SteeringConfig
from calibrate.artefact.config import load as load_config
from calibrate.artefact.directory import FRONTIER_FILES, writing, wrote
from calibrate.artefact.evidence import EVIDENCE_FILE, Evidence
from calibrate.artefact.frontier import FRONTIER_FILE, Frontier
from calibrate.artefact.hub import local_directory
from calibrate.common.errors import ArtefactError
from calibrate.common.files import remove_ours, write_together
from probes import Probe

PROBE_FOLDER = "probe"

Saved = tuple[SteeringConfig, Evidence, Probe | None, Frontier | None]


def save(
    directory: str | Path,
    config: SteeringConfig,
    evidence: Evidence,
    probe: Probe | None,
    frontier: Frontier | None = None,
) -> None:
    """Write the config, the vector, the probe, the evidence and the report; all or nothing.

    frontier: what other budgets buy, if it was measured.

    What an earlier calibration wrote there is replaced, or removed if it is an earlier frontier,
    and nothing else.
    Raises: ArtefactError if the directory cannot be written, or if a file of another origin has a
        name that is needed.
    """
    probe_files = {} if probe is None else probe.files()
    files = {
        **config.files(),
        EVIDENCE_FILE: evidence.to_bytes(),
        **{f"{PROBE_FOLDER}/{name}": content for name, content in probe_files.items()},
        **({} if frontier is None else {FRONTIER_FILE: frontier.to_bytes()}),
        **report.render(config, evidence, frontier),
    }
    write_together(directory, files, last=CONFIG_FILE, ours=wrote)
    if frontier is None:
        remove_ours(directory, FRONTIER_FILES, wrote)


def save_frontier(directory: Path, frontier: Frontier) -> Frontier:
    """Write what other budgets buy beside its calibration; all else stays as it is by now.

    Returns: what is written, with what another run has measured meanwhile.
    Raises: as `changing` and `save`.
    """
    with changing(directory, frontier.fingerprint) as (config, evidence, probe, found):
        n_prompts = len(evidence.splits.prompts["verify"])
        whole = with_others(frontier, found, n_prompts, config.settings)
        save(directory, config, evidence, probe, whole)
        return whole


@contextmanager
def changing(directory: Path, fingerprint: str) -> Iterator[Saved]:
    """Lock a calibration's directory, and yield what is in it by now.

    Others may have added to it since it was first read, and wait inside the `with`.

    fingerprint: of the calibration that was read.
    Raises: ArtefactError if it is no longer there, or nothing can be written.
    """
    with writing(directory, fingerprint) as is_there:
        if is_there:
            yield load(directory)
    if not is_there:
        raise ArtefactError(
            f"{directory} must hold the calibration that this command began with until it ends, "
            "and holds another by now; run the command again"
        )


def load(directory: str | Path) -> Saved:
    """Read what `save` wrote; no probe where others judged, no frontier where none was measured.

    Raises: ArtefactError if anything is missing or damaged.
    """
    folder, probe = local_directory(directory), None
    config = load_config(folder)
    if (folder / PROBE_FOLDER).is_dir():
        probe = probes.load(folder / PROBE_FOLDER)
    frontier = Frontier.load(folder, config.provenance.fingerprint)
    return config, Evidence.load(folder), probe, frontier
