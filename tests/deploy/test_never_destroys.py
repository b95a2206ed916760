"""Nothing is destroyed that we did not write, and a failure leaves disk and model as they were."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from refused import Refused, each
from test_cli import model_directory, run  # noqa: F401 - a fixture
from test_export import config_for, target
from torch import nn

import calibrate
from calibrate.artefact import directory as workspace
from calibrate.artefact import report
from calibrate.artefact.config import CONFIG_FILE, SteeringConfig
from calibrate.artefact.sections import InterventionSection
from calibrate.common import files, layout
from calibrate.common.errors import ArtefactError, ExportRefused, VerificationFailed
from calibrate.common.files import write_together
from calibrate.deploy.export import FORMATS, check_request, export
from calibrate.deploy.export import _exporter as exporter_of
from calibrate.deploy.export import target as target_module
from calibrate.deploy.export.adapter import residual_writer
from calibrate.deploy.export.folded import Folded
from calibrate.deploy.export.restored import restored
from calibrate.deploy.export.target import MARK_FILE
from calibrate.models import cache

pytestmark = pytest.mark.slow

DIRECTORIES = ("peft", "folded", "easysteer", "snippet")
SINGLE = ("gguf", "lm-eval", "svec")
LOCKS = "the lock of those who work there"

WANTED = SteeringConfig.model_construct(
    intervention=InterventionSection.model_construct(positions="all", layer=1)
)


def tree(folder):
    """Everything below a folder: kind, contents and times."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        facts = path.lstat()
        if path.is_symlink():
            content = os.readlink(path)
        else:
            content = path.read_bytes() if path.is_file() else None
        name = path.relative_to(folder).as_posix()
        found[name] = (facts.st_mode, facts.st_mtime_ns, facts.st_ino, content)
    return found


def contents(folder):
    """What files say, by name."""
    return {name: entry[3] for name, entry in tree(folder).items() if name != "."}


def state(model):
    """A model as the process sees it: which modules, hooks, parameters, buffers, attributes."""
    modules = list(model.named_modules())
    containers = (dict, list, set)
    return {
        "modules": [(name, id(module), type(module)) for name, module in modules],
        "attributes": [
            {
                key: (id(value), repr(value) if isinstance(value, containers) else None)
                for key, value in vars(module).items()
                if key not in ("_modules", "_parameters", "_buffers")
            }
            for _, module in modules
        ],
        "inside": [
            [
                (key, id(one))
                for kind in ("_modules", "_parameters", "_buffers")
                for key, one in getattr(module, kind).items()
            ]
            for _, module in modules
        ],
        "values": {
            name: hashlib.sha256(one.detach().contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, one in [*model.named_parameters(), *model.named_buffers()]
            if one.numel()
        },
        "trained": [one.requires_grad for one in model.parameters()],
        "training": [module.training for _, module in modules],
        "config": json.dumps(model.config.to_dict(), default=str),
        "generation": json.dumps(model.generation_config.to_dict(), default=str),
    }


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def config(finished, loaded):
    return config_for(finished.result.config, loaded)


@pytest.fixture(scope="module")
def calibrated(model_directory, tiny_options, tmp_path_factory):  # noqa: F811
    """A finished calibration of a model on disk."""
    folder = tmp_path_factory.mktemp("calibrated") / "bright"
    options = {**tiny_options, "tokenizer": None, "layer": 1}  # block 0 has no control vector
    calibrate.calibrate(str(model_directory), out=folder, **options)
    return folder


# --- What --to may not be ---------------------------------------------------------------------


def asked(format_name, make, source=None):
    """Ask for an export to what `make` returns, having made it in the folder."""

    def act(folder):
        to = make(folder)
        before = tree(folder)
        try:
            check_request(WANTED, format_name, to, source and source(folder))
        finally:
            assert tree(folder) == before

    return act


def users_folder(folder):
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    return folder / "thesis"


def users_file(folder):
    (folder / "notes.pt").write_text("years of work")
    return folder / "notes.pt"


def link_to(make):
    def act(folder):
        (folder / "link").symlink_to(make(folder))
        return folder / "link"

    return act


def marked(name, content, also=None, digest=None):
    """A directory that looks like an export of ours with one file."""

    def make(folder):
        place = folder / "export"
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text(content)
        digest_of = hashlib.sha256((digest or content).encode()).hexdigest()
        mark = {"written_by": "steering-calibrate", "files": {name: [digest_of]}}
        (place / MARK_FILE).write_text(json.dumps(mark))
        if also:
            (place / also).mkdir()
        return place

    return make


def foreign_mark(folder):
    place = users_folder(folder)
    (place / MARK_FILE).write_text('{"files": {"chapter.tex": []}}')
    return place


def working(folder):
    os.chdir(folder)
    return Path()


def above_working(folder):
    (folder / "a" / "b").mkdir(parents=True)
    os.chdir(folder / "a" / "b")
    return folder


def foreign(name, content="years of work", made_by=None):
    """Save, or calibrate, into a directory where a file of that name is the user's."""

    def act(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        before = tree(folder)
        try:
            if made_by is None:
                write_together(folder, {name: b"ours"}, last=name, ours=workspace.wrote)
            else:
                made_by(folder)
        finally:
            assert tree(folder) == before

    return act


def opened(folder):
    workspace.open_workspace(folder, "fingerprint")


def with_journal(name, content="years of work"):
    def act(folder):
        (folder / layout.JOURNAL_FILE).touch()
        foreign(name, content, opened)(folder)

    return act


def workers_elsewhere(folder):
    (folder / "elsewhere").mkdir()
    (folder / "out").mkdir()
    (folder / "out" / layout.JOURNAL_FILE).touch()
    (folder / "out" / layout.WORKERS_FOLDER).symlink_to(folder / "elsewhere")
    opened(folder / "out")


def laws_of_somebody(folder):
    (folder / layout.LAWS_FILE).write_text('{"laws": ["of Hammurabi"]}')
    workspace.require_free(folder, layout.LAWS_FILE, layout.LAWS_PICTURES)


IN_THE_WAY = (
    "… is in the way, and was not written by steering-calibrate or has been changed since; move it "
    "away, or choose another directory"
)
HOLDS = (
    "--to must be new, empty or an earlier export, but … holds '…', which is not of one; choose "
    "another --to, or move that away"
)
CHANGED = (
    "--to must be new, empty or an earlier export, but '…' in … has been changed since; choose "
    "another --to, or move that away"
)
NOT_HERE = (
    "--to must not be the working or home directory, or one above them, got …; name something new "
    "in it"
)
FOREIGN_STUDY = '{"op_code":0,"study_name":"mine"}\n{"op_code":2,"user_attr":{"mine":1}}\n'
REFUSED = [
    Refused("export gguf --to a folder of the user's",
            "--to must be a file for the gguf format, got the directory …; name a file in it",
            asked("gguf", users_folder), ArtefactError),
    Refused("export lm-eval --to a link to a folder",
            "--to must be a file for the lm-eval format, got the directory …; name a file in it",
            asked("lm-eval", link_to(users_folder)), ArtefactError),
    Refused("export lm-eval --to a file of another origin",
            "--to must be new, or an earlier export as lm-eval, but … is another file; choose "
            "another --to", asked("lm-eval", users_file), ArtefactError),
    Refused("export gguf --to a device",
            "--to must be new, or an earlier export as gguf, but /dev/null is another file; choose "
            "another --to", asked("gguf", lambda _: Path("/dev/null")), ArtefactError),
    Refused("export folded --to a file",
            "--to must be a directory for the folded format, got the file …; choose another --to",
            asked("folded", users_file), ArtefactError),
    Refused("export peft --to a folder of the user's", HOLDS,
            asked("peft", users_folder), ArtefactError),
    Refused("export snippet --to a link to a folder of the user's", HOLDS,
            asked("snippet", link_to(users_folder)), ArtefactError),
    Refused("export folded --to a folder with a mark that is not ours", HOLDS,
            asked("folded", foreign_mark), ArtefactError),
    Refused("export peft --to an earlier export to which a file was added", HOLDS,
            asked("peft", marked("steer.py", "x", also="mine")), ArtefactError),
    Refused("export snippet --to an earlier export that was edited", CHANGED,
            asked("snippet", marked("steer.py", "mine", digest="ours")), ArtefactError),
    Refused("export peft --to the working directory", NOT_HERE,
            asked("peft", working), ArtefactError),
    Refused("export folded --to a parent of the working directory", NOT_HERE,
            asked("folded", above_working), ArtefactError),
    Refused("export snippet --to the home directory", NOT_HERE,
            asked("snippet", lambda _: Path.home()), ArtefactError),
    Refused("export easysteer --to the root", NOT_HERE,
            asked("easysteer", lambda _: Path("/")), ArtefactError),
    Refused("export peft --to the directory that is exported",
            "--to must not be the directory that is exported, got …; name another",
            asked("peft", marked(CONFIG_FILE, "x"), lambda folder: folder / "export"),
            ArtefactError),
    Refused("save where a steering.json of somebody else is", IN_THE_WAY,
            foreign("steering.json", '{"vectors": []}'), ArtefactError),
    Refused("save where a report.html of the user is", IN_THE_WAY,
            foreign("report.html", "<p>mine, of steering-calibrate</p>"), ArtefactError),
    Refused("save where a probe of somebody else is", IN_THE_WAY,
            foreign("probe/probe.json", "{}"), ArtefactError),
    Refused("save where a picture of the user is", IN_THE_WAY,
            foreign("presence.png", "steering-calibrate"), ArtefactError),
    Refused("--out where a steering.json of somebody else is", IN_THE_WAY,
            foreign("steering.json", '{"vectors": []}', opened), ArtefactError),
    Refused("--out where study.journal is a text", IN_THE_WAY,
            foreign("study.journal", made_by=opened), ArtefactError),
    Refused("--out where study.journal is of another Optuna study", IN_THE_WAY,
            foreign("study.journal", FOREIGN_STUDY, opened), ArtefactError),
    Refused("--out with a study of ours and a report.html of the user", IN_THE_WAY,
            with_journal("report.html"), ArtefactError),
    Refused("--out with a study of ours and evidence.json of another origin", IN_THE_WAY,
            with_journal("evidence.json", "{}"), ArtefactError),
    Refused(f"--out with a file where {LOCKS} would be", IN_THE_WAY,
            with_journal(".workers"), ArtefactError),
    Refused(f"--out with a file where Optuna puts {LOCKS}", IN_THE_WAY,
            with_journal("study.journal.lock"), ArtefactError),
    Refused(f"--out with a link where {LOCKS} would be", IN_THE_WAY,
            workers_elsewhere, ArtefactError),
    Refused("laws --out where laws.json is of another origin", IN_THE_WAY,
            laws_of_somebody, ArtefactError),
]  # fmt: skip


@each(REFUSED)
def test_what_is_not_ours_is_refused_and_left_as_it_is(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row.check(tmp_path)


# --- What the command line does ---------------------------------------------------------------


def places(folder, calibrated):
    """Targets that are somebody's, by what they are; each is given as an argument would be."""
    thesis = folder / "thesis"
    (thesis / "figures").mkdir(parents=True)
    (thesis / "chapter.tex").write_text("years of work")
    (thesis / "adapter_config.json").write_text("{}")
    for name in ("v.gguf", "v.pt", "v.svec", "plain"):
        (folder / name).write_text('{"model_type": "mine", "directions": {}}')
    (folder / "link").symlink_to(thesis)
    (folder / "file-link.pt").symlink_to(folder / "v.pt")
    (folder / "here").mkdir()
    files_of = [f"{calibrated}/{path.name}" for path in calibrated.iterdir()]
    return [
        "thesis", "thesis/", "./thesis", "thesis/figures/..", "thesis/chapter.tex", "link",
        "file-link.pt", "v.gguf", "v.pt", "v.svec", "plain", ".", "..", "", "/", "~", "/dev/null",
        str(Path.home()), str(calibrated), f"{calibrated}/../{calibrated.name}", *files_of,
        str(calibrated / "probe"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_no_export_touches_what_is_somebody_elses(
    name, capsys, calibrated, tmp_path, monkeypatch, model_directory  # noqa: F811
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    tried = places(tmp_path, calibrated)
    before, source = tree(tmp_path), tree(calibrated)
    for to in tried:
        if to == "~":  # the shell's business: here it is the name of a new folder
            continue
        status, out, err = run(
            capsys, "export", calibrated, "--format", name, "--to", to, "--model", "nowhere"
        )
        assert (status, out) == (2, ""), to
        assert len(err.splitlines()) == 1, err
        assert "--to" in err, err
        assert tree(tmp_path) == before, to
        assert tree(calibrated) == source, to


def test_the_users_folder_survives_a_control_vector(capsys, calibrated, tmp_path):
    users_folder(tmp_path)
    before = tree(tmp_path)
    status, _, err = run(
        capsys, "export", calibrated, "--format", "gguf", "--to", tmp_path / "thesis"
    )
    assert status == 2
    assert "must be a file for the gguf format, got the directory" in err
    assert tree(tmp_path) == before


def test_an_export_is_not_written_over_the_export_it_comes_from(capsys, calibrated, tmp_path):
    first = tmp_path / "adapter"
    assert run(capsys, "export", calibrated, "--format", "peft", "--to", first)[0] == 0
    (tmp_path / "link").symlink_to(first)
    before = tree(tmp_path)
    for to in (first, tmp_path / "link"):
        status, _, err = run(capsys, "export", first, "--format", "snippet", "--to", to)
        assert status == 2
        assert "must not be the directory that is exported" in err
        assert tree(tmp_path) == before


def test_the_reports_of_an_infeasible_run_replace_ours_only(
    capsys, tmp_path, monkeypatch, model_directory, tiny_options  # noqa: F811
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    texts = tiny_options["concept"].texts
    rows = [{"text": t.text, "label": "positive"} for t in texts.positives]
    rows += [{"text": t.text, "label": "negative"} for t in texts.negatives]
    (tmp_path / "bright.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = [
        *("--model", model_directory, "--concept", "bright.jsonl", "--out", "out", "--quiet"),
        *("--prompts", tiny_options["prompts"], "--ce-budget", "1e-4", "--trials", 2),
        *("--teacher", "none", "--audit", "none"),
    ]
    report = tmp_path / "out" / "report.html"
    assert run(capsys, *command)[0] == 3
    assert run(capsys, *command)[0] == 3
    assert "What could be tried" in report.read_text()
    report.write_text("my own notes")
    before = tree(tmp_path)
    status, _, err = run(capsys, *command)
    assert (status, tree(tmp_path)) == (2, before)
    assert "report.html is in the way" in err


# --- What an export does when it works --------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_an_earlier_export_is_replaced_and_a_changed_one_is_not(name, loaded, config, tmp_path):
    to = target(tmp_path, name)
    export(config, name, to, loaded)
    first = contents(tmp_path)
    weaker = config.model_copy(
        update={"intervention": config.intervention.model_copy(update={"strength": 0.5})}
    ).with_vector(config._vector_file)
    export(weaker, name, to, loaded, check=False)
    second = contents(tmp_path)
    assert second.keys() == first.keys()
    assert second != first
    path = to / sorted(path.name for path in to.iterdir())[-1] if to.is_dir() else to
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))
    before = tree(tmp_path)
    with pytest.raises(ArtefactError, match="--to must be new"):
        export(config, name, to, loaded)
    assert tree(tmp_path) == before


def test_files_of_another_format_or_library_are_not_taken_for_ours(loaded, config, tmp_path):
    export(config, "svec", tmp_path / "v.svec", loaded)
    facts = json.loads((tmp_path / "v.svec").read_text())
    facts.pop("written_by")
    (tmp_path / "theirs.svec").write_text(json.dumps(facts))
    torch.save(
        {"h.1": {"steering_vector": torch.ones(2), "steering_coefficient": 1.0, "action": "add",
                 "bias": None, "head_index": None}},
        tmp_path / "theirs.pt",
    )  # fmt: skip
    before = tree(tmp_path)
    for name, to in (("svec", "theirs.svec"), ("lm-eval", "theirs.pt"), ("gguf", "v.svec")):
        with pytest.raises(ArtefactError, match="is another file"):
            export(config, name, tmp_path / to, loaded)
    assert tree(tmp_path) == before


def test_an_empty_directory_and_one_of_another_format_are_taken(loaded, config, tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    inode = place.stat().st_ino
    for name, there in (("folded", "model.safetensors"), ("snippet", "steer.py")):
        export(config, name, place, loaded)
        assert (place / there).exists()
    assert {path.name for path in place.iterdir()} == {
        "steer.py",
        "steering.safetensors",
        MARK_FILE,
    }
    assert place.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_a_link(loaded, config, tmp_path):
    for name, ends in (("svec", ".svec"), ("peft", "")):
        real, link = tmp_path / f"real{ends}", tmp_path / f"link{ends}"
        link.symlink_to(real)
        for _ in range(2):
            export(config, name, link, loaded, check=False)
            assert link.is_symlink()
            assert real.exists()


def test_a_mark_removes_nothing_outside_its_directory(loaded, config, tmp_path):
    """A mark that was made to name a file elsewhere, with its right digest."""
    (tmp_path / "thesis.tex").write_text("years of work")
    export(config, "snippet", tmp_path / "out", loaded)
    mark = tmp_path / "out" / MARK_FILE
    facts = json.loads(mark.read_text())
    facts["files"]["../thesis.tex"] = [hashlib.sha256(b"years of work").hexdigest()]
    mark.write_text(json.dumps(facts))
    export(config, "peft", tmp_path / "out", loaded)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- When an export fails ---------------------------------------------------------------------


class Injected(Exception):
    """What a test makes happen."""


def raising(error):
    def fail(*_args, **_options):
        raise error

    return fail


def half_way(name, monkeypatch, error):
    """Let the writer of a format fail after it has written something."""
    kind = type(exporter_of(name))
    write = kind.write

    def failing(self, config, loaded, path, to):
        write(self, config, loaded, path, to)
        raise error

    monkeypatch.setattr(kind, "write", failing)


def while_loaded_back(name, monkeypatch, error):
    """Let it fail after the consumer has put it on the model."""
    kind = type(exporter_of(name))
    loaded_back = kind.loaded_back

    @contextmanager
    def failing(self, config, loaded, path):
        with loaded_back(self, config, loaded, path):
            raise error
        yield

    monkeypatch.setattr(kind, "loaded_back", failing)


def while_moving(name, monkeypatch, error):
    """Let the last of the moves fail."""
    replace, put = os.replace, files.Moves.put
    last = MARK_FILE if name in DIRECTORIES else None
    seen = []

    def failing(self, source, to, ours):
        seen.append(to.name)
        if last is None or seen.count(last) == 2:
            monkeypatch.setattr(files.os, "replace", replace)
            raise error
        put(self, source, to, ours)

    monkeypatch.setattr(files.Moves, "put", failing)
    monkeypatch.setattr(Path, "rename", raising(OSError(errno.ENOTEMPTY, "taken")))


FAILURES = {
    "writing": (half_way, OSError(errno.ENOSPC, "No space left on device"), ArtefactError),
    "read-only": (half_way, PermissionError(errno.EACCES, "Permission denied"), ArtefactError),
    "interrupted": (half_way, KeyboardInterrupt(), KeyboardInterrupt),
    "loaded back": (while_loaded_back, Injected(), Injected),
    "moved": (while_moving, OSError(errno.EROFS, "Read-only file system"), ArtefactError),
    "interrupted moving": (while_moving, KeyboardInterrupt(), KeyboardInterrupt),
}


def trained_in_part(loaded):
    """A model in the middle of fine-tuning, with a hook of its owner's."""
    model = loaded.model
    model.train()
    next(model.parameters()).requires_grad_(False)
    model.lm_head.register_forward_hook(lambda _module, _args, output: output)
    return model


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_export_leaves_disk_and_model_as_they_were(
    name, failure, loaded, config, tmp_path
):
    fail, error, raised = FAILURES[failure]
    model, there = trained_in_part(loaded), tmp_path / "there"
    there.mkdir()
    export(config, name, target(there, name), loaded, check=False)
    before, disk = state(model), contents(tmp_path)
    for to in (target(tmp_path, name), tmp_path / "new" / "deep" / target(there, name).name,
               target(there, name)):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            fail(name, patch, error)
            with pytest.raises(raised):
                export(config, name, to, loaded)
        assert contents(tmp_path) == disk, to
        assert state(model) == before
    export(config, name, target(there, name), loaded)
    export(config, name, target(tmp_path, name), loaded)
    assert state(model) == before


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_does_not_reproduce_leaves_the_good_one(name, finished, loaded, tmp_path):
    good = config_for(finished.result.config, loaded)
    export(good, name, target(tmp_path, name), loaded)
    wrong = config_for(finished.result.config, loaded, recorded=((1,), -0.7, False))
    before, disk = state(loaded.model), contents(tmp_path)
    with pytest.raises(VerificationFailed, match="nothing was kept"):
        export(wrong, name, target(tmp_path, name), loaded)
    assert contents(tmp_path) == disk
    assert state(loaded.model) == before


@pytest.mark.parametrize(
    "kind", [Injected("4-bit"), ValueError("size mismatch"), KeyboardInterrupt()]
)
def test_peft_that_gives_up_half_way_leaves_the_model_as_it_was(
    kind, loaded, config, tmp_path, monkeypatch
):
    import peft

    put_on = peft.PeftModel.from_pretrained

    def half(model, path):
        put_on(model, path)
        model.config.use_cache = False
        model.lm_head.weight.data = torch.zeros(1)
        raise kind

    model = trained_in_part(loaded)
    before, disk = state(model), tree(tmp_path)
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", half)
    raised = KeyboardInterrupt if isinstance(kind, KeyboardInterrupt) else ExportRefused
    with pytest.raises(raised, match="" if raised is KeyboardInterrupt else "PEFT cannot put the"):
        export(config, "peft", tmp_path / "out", loaded)
    assert state(model) == before
    assert contents(tmp_path) == {name: entry[3] for name, entry in tree(tmp_path).items()
                                  if name != "."} == {}  # fmt: skip
    assert disk.keys() == {"."}
    monkeypatch.undo()
    assert export(config, "peft", tmp_path / "out", loaded).gap < 1e-4
    assert state(model) == before


@pytest.mark.parametrize("method", ["save_pretrained", "from_pretrained"])
def test_transformers_that_gives_up_leaves_the_disk_as_it_was(
    method, loaded, config, tmp_path, monkeypatch
):
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if method == "save_pretrained":
        save = PreTrainedModel.save_pretrained

        def half(self, folder, **options):
            save(self, folder, **options)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(PreTrainedModel, method, half)
    else:
        monkeypatch.setattr(AutoModelForCausalLM, method, raising(OSError("no such checkpoint")))
    before = state(loaded.model)
    with pytest.raises(calibrate.InputError):
        export(config, "folded", tmp_path / "folded", loaded)
    assert list(tmp_path.iterdir()) == []
    assert state(loaded.model) == before


def test_everything_that_code_can_do_to_a_model_is_undone():
    model = tiny.model("gpt2")
    before = state(model)
    with pytest.raises(Injected), restored(model):
        take_apart(model)
    assert state(model) == before
    assert model.transformer.wte.weight.grad is None


def take_apart(model):
    model.transformer.h[0].mlp = nn.Identity()
    del model.transformer.h[2]
    model.transformer.h[1].extra = nn.Linear(2, 2)
    model.transformer.h[1].register_forward_pre_hook(lambda *_: None)
    model.transformer.wte.weight.requires_grad_(False)
    model.transformer.wte.weight.grad = torch.zeros_like(model.transformer.wte.weight)
    model.transformer.ln_f.weight = nn.Parameter(torch.zeros(3))
    model.lm_head.forward = None
    model.config.n_layer = 7
    model.generation_config.max_length = 7
    model.half().train()
    raise Injected


# --- Two at once, and others who write meanwhile ----------------------------------------------


def meanwhile(name, monkeypatch, act):
    """Do something between the moment an export has been looked at and that of its move."""
    kind = type(exporter_of(name))
    write = kind.write

    def writing(self, config, loaded, path, to):
        write(self, config, loaded, path, to)
        monkeypatch.setattr(kind, "write", write)
        act()

    monkeypatch.setattr(kind, "write", writing)


@pytest.mark.parametrize("name", FORMATS)
def test_what_appears_meanwhile_is_not_overwritten(name, loaded, config, tmp_path, monkeypatch):
    to = target(tmp_path, name)

    def users():
        if name in DIRECTORIES:
            to.mkdir()
        (to / "mine" if name in DIRECTORIES else to).write_text("years of work")

    meanwhile(name, monkeypatch, users)
    with pytest.raises(ArtefactError, match="--to must be new"):
        export(config, name, to, loaded, check=False)
    mine = to / "mine" if name in DIRECTORIES else to
    assert [path.name for path in tmp_path.iterdir()] == [to.name]
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_was_overtaken_replaces_the_other(
    name, loaded, config, tmp_path, monkeypatch
):
    to = target(tmp_path, name)
    meanwhile(name, monkeypatch, lambda: export(config, name, to, loaded, check=False))
    export(config, name, to, loaded, check=False)
    assert [path.name for path in tmp_path.iterdir()] == [to.name]
    check_request(config, name, to)
    if to.is_dir():
        listed = json.loads((to / MARK_FILE).read_text())["files"]
        assert {path.name for path in to.iterdir()} == {MARK_FILE, *listed}


def test_a_place_is_looked_at_only_while_no_other_export_is_half_way_there(
    config, tmp_path, monkeypatch
):
    held, seen = [], []

    @contextmanager
    def locked(path):
        held.append(path)
        yield
        held.remove(path)

    monkeypatch.setattr(target_module, "_locked", locked)
    monkeypatch.setattr(target_module, "require", lambda *_, **__: seen.append(list(held)))
    out = tmp_path / "out"
    check_request(config, "easysteer", out)
    export(config, "easysteer", out, check=False)
    assert seen == [[out]] * 3


def test_many_exports_to_one_place_leave_one_whole_export(loaded, config, tmp_path):
    errors = []

    def work(strength):
        done = config.intervention.model_copy(update={"strength": strength})
        mine = config.model_copy(update={"intervention": done}).with_vector(config._vector_file)
        try:
            for _ in range(5):
                export(mine, "easysteer", tmp_path / "out", check=False)
        except Exception as error:  # reported below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(0.1 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_request(config, "easysteer", tmp_path / "out")


# --- A calibration's own directory ------------------------------------------------------------


def test_all_that_a_calibration_writes_is_known_beforehand(finished):
    names = {
        path.relative_to(finished.directory).as_posix()
        for path in finished.directory.rglob("*")
        if path.is_file()
    }
    assert names - {layout.JOURNAL_FILE} == set(workspace.ARTEFACT_FILES)
    for name in workspace.ARTEFACT_FILES:
        assert workspace.wrote(finished.directory / name), name


def test_saving_again_replaces_what_was_saved_and_leaves_the_rest(finished, tmp_path):
    finished.result.save(tmp_path / "joy")
    (tmp_path / "joy" / "thesis.tex").write_text("years of work")
    finished.result.save(tmp_path / "joy")
    assert (tmp_path / "joy" / "thesis.tex").read_text() == "years of work"
    assert calibrate.load(tmp_path / "joy") == finished.result.config


@pytest.mark.parametrize("name", sorted({Path(name).name for name in workspace.ARTEFACT_FILES}))
def test_saving_over_anybody_elses_file_is_refused(name, finished, tmp_path):
    (where,) = [path for path in workspace.ARTEFACT_FILES if Path(path).name == name]
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ArtefactError, match=f"{name} is in the way"):
        finished.result.save(tmp_path)
    assert tree(tmp_path) == before


def test_a_vector_of_the_users_beside_no_config_is_not_ours(finished, tmp_path):
    from safetensors.numpy import save_file

    save_file({"vector": np.ones(4, np.float32)}, tmp_path / "steering.safetensors")
    before = tree(tmp_path)
    with pytest.raises(ArtefactError, match=r"steering\.safetensors is in the way"):
        finished.result.save(tmp_path)
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def pages(finished):
    return report.render(finished.result.config, finished.result.evidence)


@pytest.fixture
def drawn(finished, pages, monkeypatch):
    """A finished calibration whose report has been drawn: that takes seconds."""
    monkeypatch.setattr(report, "render", lambda *_: pages)
    return finished.result


@pytest.mark.parametrize("failing", range(1, 10))
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_save_that_fails_at_any_move_leaves_the_saved_one(failing, error, drawn, tmp_path,
                                                            monkeypatch):  # fmt: skip
    drawn.save(tmp_path / "joy")
    before, replace, moved = contents(tmp_path), os.replace, []

    def fail(source, to):
        moved.append(to)
        if len(moved) == failing:
            raise error
        replace(source, to)

    for place in ("joy", "new/joy"):
        moved.clear()
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", fail)
            with pytest.raises((ArtefactError, KeyboardInterrupt)):
                drawn.save(tmp_path / place)
        assert contents(tmp_path) == before


def test_a_file_system_without_links_does_as_well(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "link", raising(OSError(errno.EPERM, "not here")))
    for _ in range(2):
        drawn.save(tmp_path / "joy")
    assert calibrate.load(tmp_path / "joy") == drawn.config
    before, replace, moved = contents(tmp_path), os.replace, []

    def fail(source, to):
        moved.append(to)
        if len(moved) == 4:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, to)

    monkeypatch.setattr(files.os, "replace", fail)
    for place in ("joy", "new"):
        moved.clear()
        with pytest.raises(ArtefactError):
            drawn.save(tmp_path / place)
        assert contents(tmp_path) == before


def test_only_locks_of_ours_are_removed(tmp_path):
    locks = tmp_path / layout.WORKERS_FOLDER
    locks.mkdir()
    (locks / "mine.lock").write_text("years of work")
    (locks / f"{'a' * 32}.lock").touch()
    (tmp_path / CONFIG_FILE).write_text('{"format": "steering-config"}')
    with workspace.writing(tmp_path, "fingerprint"):
        pass
    assert contents(locks) == {"mine.lock": b"years of work"}
    (locks / "mine.lock").unlink()
    with workspace.writing(tmp_path, "fingerprint"):
        pass
    assert not locks.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"op_c',
        b'{"op_code":0,"study_name":"bright"}\n',
        b'{"op_code":0,"study_name":"bright"}\n{"op_code":2,"user_attr":{"finger',
        b'{"op_code":0}\n{"op_code":2,"user_attr":{"fingerprint":"f"}}\n{"op_code":4}\n{"op_',
    ],
)
def test_a_journal_of_ours_is_known_however_far_it_came(content, tmp_path):
    (tmp_path / layout.JOURNAL_FILE).write_bytes(content)
    assert workspace.open_workspace(tmp_path, "fingerprint") == (tmp_path, False)


def test_the_cache_makes_room_among_its_own_entries_only(loaded, monkeypatch):
    from dataclasses import replace

    from calibrate.texts.replies import REPLIES

    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    kept = cache.cache_directory() / "kept"
    (kept / "mine").mkdir(parents=True)
    (kept / "mine" / "thesis.json").write_text("years of work")
    (kept / "notes.json").write_text("years of work")
    strange = kept / ("a" * 64)
    strange.mkdir()
    (strange / "thesis.tex").write_text("years of work")
    (kept / ("b" * 64)).symlink_to(kept / "mine")
    before = contents(kept)
    cache.load_or_compute(replace(loaded, by_name=True), REPLIES, {"seed": 0}, lambda: [[1]])
    assert contents(kept) == before


# --- Models that are not plain ----------------------------------------------------------------


class Packed(nn.Linear):
    """A projection whose weights are packed two to a byte, as 4-bit libraries do."""

    def __init__(self, plain):
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.plain = plain.weight.detach()
        packed = torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, hidden):
        return hidden @ self.plain.T


def packed(loaded):
    for block in loaded.blocks:
        block.mlp.down_proj = Packed(block.mlp.down_proj)
    return loaded


def test_a_quantised_model_in_memory_is_exported_or_refused_and_stays_itself(
    finished, loaded, tmp_path
):
    packed(loaded)
    config = config_for(finished.result.config, loaded)
    before = state(loaded.model)
    assert export(config, "peft", tmp_path / "adapter", loaded).gap < 1e-4
    assert state(loaded.model) == before
    with pytest.raises(ExportRefused, match=r"quantised or offloaded.*full precision"):
        export(config, "folded", tmp_path / "folded", loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert state(loaded.model) == before


def test_quantised_projections_that_take_no_bias_are_named_as_the_reason(loaded):
    for block in loaded.blocks:
        for name in ("mlp.down_proj", "self_attn.o_proj"):
            parent, _, child = name.rpartition(".")
            holder = block.get_submodule(parent)
            setattr(holder, child, _Opaque(getattr(holder, child)))
    with pytest.raises(ExportRefused, match="it is quantised, and its projections are of a kind"):
        residual_writer(loaded, 1, "peft")


class _Opaque(nn.Module):
    def __init__(self, plain):
        super().__init__()
        self.plain = [plain]
        self.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)

    def forward(self, hidden):
        return self.plain[0](hidden)


def test_folding_says_of_a_quantised_model_that_it_is(loaded):
    loaded.model.is_quantized = True
    with pytest.raises(ExportRefused, match="is quantised or offloaded"):
        Folded().subject(loaded)
