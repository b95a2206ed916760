"""Push and fetch against the Hub's own client, on a server of this machine."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import hub_server
import pytest
import tiny
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download

import calibrate
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.hub import SUMS_FILE, local_directory
from calibrate.cli.commands import cli
from calibrate.common.errors import AlteredError, ArtefactError, InputError
from calibrate.deploy.export import FORMATS
from calibrate.deploy.verify import check_directory, open_model
from calibrate.pipelines import hub as hub_module
from calibrate.pipelines.card import command_of, needed_by
from calibrate.pipelines.hub import push

REPOSITORY = "me/bright"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.running() as running:
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_nobody")
        yield running


def test_what_is_pushed_is_what_is_loaded(hub, finished, monkeypatch, tmp_path):
    pushed = push(finished.directory, REPOSITORY)
    assert pushed.place == f"{hub.url}/{REPOSITORY}"
    assert hub.private[REPOSITORY]
    assert set(pushed.files) == set(hub.repositories[REPOSITORY])
    monkeypatch.chdir(tmp_path)
    assert calibrate.load(REPOSITORY) == finished.result.config
    again = calibrate.Calibration.load(REPOSITORY)
    assert again.evidence == finished.result.evidence
    assert again.config.steering_vector.values.equal(finished.result.config.steering_vector.values)


def test_the_gate_reads_the_hub_only_where_it_is_named_and_says_what_it_read(
    hub, finished, monkeypatch, tmp_path
):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    commit = hub_server.digest(hub.repositories[REPOSITORY])
    for name in (f"hub:{REPOSITORY}", f"hub:{REPOSITORY}@{commit}"):
        report = calibrate.check_directory(name, loaded, quick=True)
        assert report.passed
        assert report.checks[0].name == "origin"
        assert report.checks[0].found == f"read from the Hub, {REPOSITORY} at {commit}"
    with pytest.raises(ArtefactError, match="or write hub:me/bright for the repository"):
        calibrate.check_directory(REPOSITORY, loaded, quick=True)


@pytest.mark.parametrize("name", ["./me/bright", "../x/me/bright", "me/bright/", Path("me/bright")])
def test_what_is_a_directory_by_its_looks_is_not_looked_for_on_the_hub(
    name, hub, finished, monkeypatch, tmp_path
):
    push(finished.directory, REPOSITORY)
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    with pytest.raises(ArtefactError, match=r"bright must hold a steering\.json"):
        calibrate.load(name)


def test_a_repository_can_be_named_where_a_folder_is_here(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    (tmp_path / REPOSITORY).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert calibrate.load(f"hub:{REPOSITORY}") == finished.result.config


def test_a_repository_that_was_downloaded_whole_can_be_read(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    files = hub.repositories[REPOSITORY]
    files[".gitattributes"] = files["LICENSE"] = b"of the Hub"
    files["README.md"] += b"and a word of mine"
    snapshot_download(REPOSITORY)
    monkeypatch.chdir(tmp_path)
    folder = local_directory(REPOSITORY)
    assert (folder / "LICENSE").is_file()
    assert calibrate.load(REPOSITORY) == finished.result.config


def test_what_is_saved_of_a_repository_is_known_for_its_copy(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    calibrate.Calibration.load(REPOSITORY).save("copy")
    calibrate.Calibration.load("copy").save("copy of it")
    commit = hub_server.digest(hub.repositories[REPOSITORY])
    for place in (REPOSITORY, "copy", "copy of it"):
        origin = calibrate.load(place).origin
        assert origin.place == "repository"
        assert origin.says == f"read from the Hub, {REPOSITORY} at {commit}"
    facts = json.loads((tmp_path / "copy" / "steering.json").read_text())
    facts["provenance"]["repository"] = "me/bright@x\x1b[2J"
    (tmp_path / "copy" / "steering.json").write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match=r"provenance\.repository is out of range"):
        calibrate.load("copy")


def test_what_lies_below_a_pushed_folder_is_of_the_repository_too(finished, tmp_path):
    push(finished.directory, REPOSITORY, dry_run=tmp_path / "clone")
    inside = tmp_path / "clone" / "exports" / "folded-bright"
    shutil.copytree(finished.directory, inside)
    assert calibrate.load(inside).origin.place == "repository"
    (tmp_path / "own" / "bright").mkdir(parents=True)
    (tmp_path / "own" / SUMS_FILE).write_text("of a disk image")
    own = shutil.copytree(finished.directory, tmp_path / "own" / "bright", dirs_exist_ok=True)
    assert calibrate.load(own).origin.place == "directory"


def test_what_is_shown_and_said_of_a_repository_is_that_of_its_directory(
    hub, finished, monkeypatch, tmp_path
):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    tiny.model("gpt2").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    ask = ["--prompt", "the house", "--model", str(tmp_path / "model"), "--json"]
    for command in (["show", "{}", "--json"], ["generate", "{}", *ask]):
        here, there = (
            CliRunner().invoke(cli, [word.format(place) for word in command])
            for place in (finished.directory, REPOSITORY)
        )
        assert here.exit_code == there.exit_code == 0, there.output
        assert here.stdout == there.stdout
        assert f"read from the Hub, {REPOSITORY} at " in there.stderr
        assert "read from the Hub" not in here.stderr


def test_a_file_that_was_changed_on_the_hub_is_refused(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    files = hub.repositories[REPOSITORY]
    files["evidence.json"] += b" "
    with pytest.raises(AlteredError, match=r"evidence\.json must have SHA-256"):
        calibrate.Calibration.load(REPOSITORY)
    files["evidence.json"] = files["evidence.json"][:-1]
    files["probe/extra.json"] = b"{}"
    with pytest.raises(AlteredError, match=r"probe/extra\.json is in the repository"):
        calibrate.load(REPOSITORY)


def test_nothing_but_a_calibrations_files_is_fetched(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    hub.repositories[REPOSITORY]["payload.pt"] = b"not for us"
    folder = local_directory(REPOSITORY)
    assert not (folder / "payload.pt").exists()
    assert not list(folder.glob("*.png"))


def test_a_revision_can_be_named(hub, finished, monkeypatch, tmp_path):
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    revision = hub_server.digest(hub.repositories[REPOSITORY])
    assert calibrate.load(f"{REPOSITORY}@{revision}") == finished.result.config


def test_a_folder_here_goes_before_a_repository(hub, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.directory, tmp_path / "me" / "bright")
    assert calibrate.load(REPOSITORY) == finished.result.config
    assert hub.repositories == {}


def test_what_is_neither_here_nor_there_is_refused(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtefactError, match="or a repository on the Hub that can be read"):
        calibrate.load("me/nothing")


def test_a_card_of_other_origin_is_not_replaced(hub, finished, monkeypatch):
    hub.repositories[REPOSITORY] = {"README.md": b"# My own words of steering-calibrate\n"}
    before = dict(hub.repositories[REPOSITORY])
    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "_write", None)  # it is refused before anything is made
        with pytest.raises(ArtefactError, match=r"it has another README\.md"):
            push(finished.directory, REPOSITORY)
    assert hub.repositories[REPOSITORY] == before
    hub.repositories[REPOSITORY] = {}
    push(finished.directory, REPOSITORY)
    push(finished.directory, REPOSITORY)  # its own card is


@pytest.mark.parametrize("name", ["README.md", "report.html", "presence.png", SUMS_FILE])
def test_a_file_that_no_push_put_there_is_not_replaced(name, hub, finished):
    hub.repositories[REPOSITORY] = {name: b"mine, with steering-calibrate"}
    with pytest.raises(ArtefactError, match=f"it has another {name}"):
        push(finished.directory, REPOSITORY)
    assert hub.repositories[REPOSITORY] == {name: b"mine, with steering-calibrate"}


def test_a_card_that_was_edited_on_the_hub_is_not_replaced(hub, finished):
    push(finished.directory, REPOSITORY)
    hub.repositories[REPOSITORY]["README.md"] += b"And a word of my own.\n"
    before = dict(hub.repositories[REPOSITORY])
    with pytest.raises(ArtefactError, match=r"it has another README\.md"):
        push(finished.directory, REPOSITORY)
    assert hub.repositories[REPOSITORY] == before


def test_beside_a_card_of_ours_a_file_of_the_users_is_not_replaced(hub, finished, model_folder):
    push(finished.directory, REPOSITORY)
    hub.repositories[REPOSITORY]["exports/gguf-bright.gguf"] = b"mine"
    with pytest.raises(ArtefactError, match=r"it has another exports/gguf-bright\.gguf"):
        push(finished.directory, REPOSITORY, formats=("gguf",), model=str(model_folder))
    assert hub.repositories[REPOSITORY]["exports/gguf-bright.gguf"] == b"mine"


@pytest.fixture
def model_folder(tmp_path):
    """A directory that holds the model of the finished calibration."""
    tiny.model("gpt2").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_an_earlier_push_left_goes_and_other_files_stay(
    hub, finished, model_folder, monkeypatch, tmp_path
):
    push(finished.directory, REPOSITORY, formats=("gguf",), model=str(model_folder))
    files = hub.repositories[REPOSITORY]
    assert "exports/gguf-bright.gguf" in files
    files["exports/mine.gguf"] = files["notes.md"] = b"not of a push"
    pushed = push(finished.directory, REPOSITORY)
    assert set(files) == {*pushed.files, "exports/mine.gguf", "notes.md"}
    monkeypatch.chdir(tmp_path)
    assert calibrate.load(REPOSITORY) == finished.result.config


def test_an_earlier_frontier_does_not_make_a_later_push_unreadable(
    hub, finished, monkeypatch, tmp_path
):
    push(finished.directory, REPOSITORY)
    earlier(hub, {"frontier.json": b"{}"})
    push(finished.directory, REPOSITORY)
    monkeypatch.chdir(tmp_path)
    assert calibrate.load(REPOSITORY) == finished.result.config


def test_a_name_with_a_star_removes_that_file_alone(hub, finished):
    push(finished.directory, REPOSITORY)
    earlier(hub, {"exports/*[a].gguf": b"ours"})
    files = hub.repositories[REPOSITORY]
    files["exports/xa.gguf"] = b"not ours"
    push(finished.directory, REPOSITORY)
    assert "exports/*[a].gguf" not in files
    assert files["exports/xa.gguf"] == b"not ours"


def test_a_list_beside_no_card_of_ours_removes_nothing(hub, finished):
    listed = f"{hashlib.sha256(b'mine').hexdigest()}  data.bin\n".encode()
    hub.repositories[REPOSITORY] = {"data.bin": b"mine", SUMS_FILE: listed}
    with pytest.raises(ArtefactError, match=f"it has another {SUMS_FILE}"):
        push(finished.directory, REPOSITORY)
    assert hub.repositories[REPOSITORY] == {"data.bin": b"mine", SUMS_FILE: listed}


def test_a_list_of_another_form_is_refused_and_nothing_is_changed(hub, finished):
    push(finished.directory, REPOSITORY)
    hub.repositories[REPOSITORY][SUMS_FILE] = b"no digests\n"
    before = dict(hub.repositories[REPOSITORY])
    with pytest.raises(ArtefactError, match=r"SHA256SUMS of me/bright must be as `calibrate push`"):
        push(finished.directory, REPOSITORY)
    assert hub.repositories[REPOSITORY] == before


def earlier(hub, files):
    """Have files in a repository as if the push before had put them there."""
    there = hub.repositories[REPOSITORY]
    there.update(files)
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n".encode() for name in files)
    there[SUMS_FILE] += b"".join(lines)


def uploaded(folder, seed):
    """Put a model of other weights on the hub, and return its commit."""
    torch.manual_seed(seed)
    type(made := tiny.model("llama"))(made.config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    api = HfApi()
    api.create_repo("me/model", exist_ok=True)
    return api.upload_folder(repo_id="me/model", folder_path=folder).oid


def test_a_model_of_the_hub_is_loaded_at_the_commit_it_was_calibrated_at(hub, finished, tmp_path):
    then = uploaded(tmp_path / "model", seed=1)
    loaded = calibrate.load_model("me/model")
    assert loaded.revision == then
    config = finished.result.config.model_copy(update={"model": loaded.identity})
    now = uploaded(tmp_path / "model", seed=2)
    opened = open_model(config)
    assert opened.revision == then
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor)
    for another in (open_model(config, "me/model"), open_model(config, revision=now)):
        assert another.revision == now
    assert open_model(config, str(tmp_path / "model")).revision is None


@pytest.mark.parametrize(("named", "at"), [("me/tokenizer", None), ("me/model", "the model's")])
def test_the_revision_is_the_models_and_not_another_tokenizers(
    named, at, hub, tmp_path, monkeypatch
):
    commit, asked = uploaded(tmp_path / "model", seed=1), []
    HfApi().create_repo("me/tokenizer")

    def from_pretrained(source, revision, **options):
        asked.append((source, revision))
        return tiny.tokenizer()

    monkeypatch.setattr("calibrate.engine.loading.AutoTokenizer.from_pretrained", from_pretrained)
    calibrate.load_model("me/model", named, revision=commit)
    assert asked == [(named, at and commit)]


def test_a_dry_run_writes_a_folder_and_sends_nothing(hub, finished, tmp_path):
    said = CliRunner().invoke(
        cli, ["push", str(finished.directory), REPOSITORY, "--dry-run", str(tmp_path / "dry")]
    )
    assert said.exit_code == 0, said.output
    assert hub.repositories == {}
    folder = tmp_path / "dry"
    assert calibrate.load(folder) == finished.result.config
    for line in (folder / SUMS_FILE).read_text().splitlines():
        expected, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
    with pytest.raises(ArtefactError, match="must not exist yet"):
        push(finished.directory, REPOSITORY, dry_run=folder)


def test_a_dry_run_that_fails_leaves_nothing_in_the_way(finished, model_folder, tmp_path):
    folder = tmp_path / "new" / "dry"
    with pytest.raises(InputError):
        push(
            finished.directory, REPOSITORY, formats=("gguf",), dry_run=folder,
            model=str(tmp_path / "nowhere"),
        )  # fmt: skip
    assert not folder.parent.exists()
    pushed = push(
        finished.directory, REPOSITORY, formats=("gguf",), dry_run=folder, model=str(model_folder)
    )
    assert [path.name for path in folder.parent.iterdir()] == ["dry"]
    assert "exports/gguf-bright.gguf" in pushed.files


def test_what_appears_during_a_dry_run_stays(finished, tmp_path, monkeypatch):
    folder, write = tmp_path / "dry", hub_module._write

    def meanwhile(*given):
        write(*given)
        folder.mkdir()
        (folder / "thesis.txt").write_text("years")

    monkeypatch.setattr(hub_module, "_write", meanwhile)
    with pytest.raises(ArtefactError, match="cannot write to"):
        push(finished.directory, REPOSITORY, dry_run=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["dry"]
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_the_card_says_what_was_measured(finished, tmp_path):
    push(finished.directory, REPOSITORY, dry_run=tmp_path / "dry")
    config = finished.result.config
    card = ModelCard.load(tmp_path / "dry" / "README.md")
    facts = yaml.safe_load(card.data.to_yaml())
    assert facts["pipeline_tag"] == "text-generation"
    assert "steering-vector" in facts["tags"]
    assert "base_model" not in facts  # a model in memory has no address
    for value in (
        f"{config.intervention.strength:.4g}",
        f"{config.measured.presence.change.value:.3f}",
        f"{config.measured.delta_ce.upper:.4f}",
        config.vector.sha256,
        config.provenance.fingerprint,
    ):
        assert value in card.text
    pictures = [line for line in card.text.splitlines() if line.startswith("![")]
    assert pictures
    for line in pictures:
        assert (tmp_path / "dry" / line.partition("](")[2].removesuffix(")")).is_file()
    assert "{{" not in card.text
    assert "{%" not in card.text


@pytest.mark.parametrize(("name", "pinned"), [("org/model", True), ("smollm2", False)])
def test_the_code_on_the_card_loads_the_calibrated_commit(finished, tmp_path, name, pinned):
    """An embedded model has a revision that is no commit of the Hub."""
    shutil.copytree(finished.directory, tmp_path / "named")
    facts = json.loads((tmp_path / "named" / "steering.json").read_text())
    facts["model"] |= {"id": name, "revision": "abc123"}
    (tmp_path / "named" / "steering.json").write_text(json.dumps(facts))
    push(tmp_path / "named", REPOSITORY, dry_run=tmp_path / "dry")
    code = (tmp_path / "dry" / "README.md").read_text().split("```")[1]
    assert ('    revision="abc123",\n' in code) == pinned
    assert '    dtype="float32",\n' in code
    compile(code.removeprefix("python"), "card", "exec")


def test_the_code_on_the_card_steers_the_model_as_it_was_calibrated(
    finished, tmp_path, model_folder, monkeypatch, capsys
):
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template += "{# takes enable_thinking #}"
    tokenizer.save_pretrained(model_folder)
    facts = config_facts(finished)
    facts["model"]["id"] = str(model_folder)
    facts["rendering"] = {
        "kwargs": {"enable_thinking": False}, "date": "2025-01-02", "content": "text",
        "system": "role", "history": "turns", "strips_end": False,
    }  # fmt: skip
    written(finished, tmp_path / "named", facts)
    push(tmp_path / "named", REPOSITORY, dry_run=tmp_path / "me" / "bright")
    code = (tmp_path / "me" / "bright" / "README.md").read_text().split("```")[1]
    monkeypatch.chdir(tmp_path)
    how = {}
    load_model = calibrate.load_model

    def loading(*given, **named):
        how.update(named)
        return load_model(*given, **named)

    monkeypatch.setattr(calibrate, "load_model", loading)
    exec(compile(code.removeprefix("python"), "card", "exec"), {})
    assert how["chat_template_kwargs"] == {"enable_thinking": False}
    assert how["template_date"] == "2025-01-02"
    assert capsys.readouterr().out.startswith("<user> ")


def config_facts(finished):
    return json.loads((finished.directory / "steering.json").read_text())


def written(finished, folder, facts):
    """The finished calibration with another config."""
    shutil.copytree(finished.directory, folder)
    (folder / "steering.json").write_text(json.dumps(facts))


def asked_by(config):
    """The options of the card's command, read by the command line itself."""
    words = shlex.split(command_of(config))[1:]
    return cli.make_context("calibrate", words, resilient_parsing=True).params


def test_the_command_on_the_card_gives_the_same_settings(finished):
    """As far as options can say it."""
    asked = asked_by(finished.result.config)
    assert asked["ce_budget"] == (0.4,)
    assert asked["trials"] == finished.result.config.settings.trials
    assert asked["min_gain"] == 0.0
    assert asked["layer"] == "search"
    assert asked["reply_tokens"] == 12
    assert asked["dtype"] == "float32"
    assert [asked[name] for name in ("teacher", "audit", "guard")] == ["none"] * 3
    assert needed_by(finished.result.config) == ()


def test_the_command_on_the_card_names_model_readers_and_questions(finished, tmp_path):
    facts = config_facts(finished)
    facts["model"] |= {"id": "org/model", "revision": "abc123", "dtype": "bfloat16"}
    facts["rendering"] = {
        "kwargs": {"enable_thinking": False}, "date": None, "content": "text", "system": "role",
        "history": "turns", "strips_end": False,
    }  # fmt: skip
    facts["provenance"]["settings"] |= {"precision": 0.05, "layer": [3, 4]}
    interval = facts["measured"]["presence"]["change"]
    facts["measured"] |= {"judges": ["openai:gpt-4o", "question"]}
    facts["measured"]["presence"]["scale"] = None
    facts["measured"]["guard"] = {
        "name": "lm-eval:arc_easy", "sha256": "0", "n_questions": 100, "accuracy": interval,
        "baseline": 0.5, "drop": interval, "drop_upper": 0.1,
    }  # fmt: skip
    config = SteeringConfig.model_validate(facts)
    asked = asked_by(config)
    expected = {
        "model": "org/model", "revision": "abc123", "dtype": "bfloat16", "precision": 0.05,
        "layer": "3,4", "judge": "openai:gpt-4o", "audit": "question", "guard": "lm-eval:arc_easy",
        "chat_template_kwargs": {"enable_thinking": False}, "teacher": None,
    }  # fmt: skip
    assert {name: asked[name] for name in expected} == expected
    facts["measured"] |= {"judges": ["question:qwen2.5-1.5b", "embedding"]}
    facts["measured"]["presence"]["scale"] = {
        "source": "taught", "teacher": "question:qwen2.5-1.5b", "n_texts": {"teacher": 96},
        "auc": interval, "calibration_error": interval,
    }  # fmt: skip
    asked = asked_by(SteeringConfig.model_validate(facts))
    assert (asked["teacher"], asked["judge"], asked["audit"]) == ("qwen2.5-1.5b", "auto", "auto")


@pytest.mark.parametrize("how", ["start", "beside", "corpus"])
def test_a_card_says_what_its_command_needs(how, finished, tmp_path):
    facts = config_facts(finished)
    interval = facts["measured"]["presence"]["change"]
    if how == "start":
        facts["provenance"]["start"] = {
            "fingerprint": "fade", "strength": 1.0, "strength_at_budget": interval,
            "confirmed": True,
        }  # fmt: skip
        says = "DIR is the earlier calibration that it began with, `fade`."
    elif how == "beside":
        facts["beside"] = {
            "name": "calm", "goal": "increase", "fingerprint": "fade", "weight": 0.5,
            "judge": "probe", "presence": interval, "baseline": 0.5, "change": interval,
        }  # fmt: skip
        says = "DIR is the earlier calibration of calm that is steered with it, `fade`, and `--mix`"
    else:
        facts["measured"]["delta_ce"]["corpus"] = "file"
        says = "The FILE of `--corpus` is that which cross-entropy was measured on."
    written(finished, tmp_path / "named", facts)
    push(tmp_path / "named", REPOSITORY, dry_run=tmp_path / "dry")
    text = (tmp_path / "dry" / "README.md").read_text()
    assert says in text
    assert f"--{how} {'FILE' if how == 'corpus' else 'DIR'}" in text
    assert ("--teacher" in text) == (how != "start")  # that one has its reader from before


@pytest.mark.slow
def test_exports_are_put_beside_it(finished, model_folder, tmp_path):
    pushed = push(
        finished.directory, REPOSITORY, formats=("snippet", "svec"), dry_run=tmp_path / "dry",
        model=str(model_folder),
    )  # fmt: skip
    exported = {name.split("/")[1] for name in pushed.files if name.startswith("exports/")}
    assert exported == {"snippet-bright", "svec-bright.svec"}
    card = (tmp_path / "dry" / "README.md").read_text()
    assert "exports/svec-bright.svec" in card
    after = [layer + 1 for layer in finished.result.config.layers]
    assert f"behavior_layer_ids={after}" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["org/model", "GPT2LMHeadModel"])
def test_no_export_that_is_pushed_names_a_place_here(name, finished, model_folder, tmp_path):
    shutil.copytree(finished.directory, tmp_path / "named")
    facts = json.loads((tmp_path / "named" / "steering.json").read_text())
    facts["model"]["id"] = name
    (tmp_path / "named" / "steering.json").write_text(json.dumps(facts))
    dry = tmp_path / "dry"
    push(
        tmp_path / "named", REPOSITORY, formats=tuple(FORMATS), dry_run=dry,
        model=str(model_folder),
    )  # fmt: skip
    for path in (path for path in dry.rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    exports = dry / "exports"
    assert f"MODEL, STRENGTH = {name!r}" in (exports / "snippet-bright" / "steer.py").read_text()
    adapter = json.loads((exports / "peft-bright" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == (name if "/" in name else None)
    card = (exports / "folded-bright" / "README.md").read_text()
    assert ("base_model: org/model" in card) == (name == "org/model")
    (vector,) = json.loads((exports / "easysteer-bright" / "steering.json").read_text())["vectors"]
    assert (exports / "easysteer-bright" / vector["source"]).is_file()


def with_places(finished, folder, model_folder):
    """The calibration as it is of a model, judges and a server that are only there."""
    shutil.copytree(finished.directory, folder)
    (folder / "frontier.json").unlink(missing_ok=True)
    facts = json.loads((folder / "steering.json").read_text())
    judge, audit = f"question:{folder}/judge.gguf", f"embedding:{folder}/encoder"
    audited = {**facts["measured"]["presence"]["change"], "judge": audit, "agreement": 0.5}
    audited |= {"baseline": 0.1, "change": facts["measured"]["presence"]["change"]}
    facts["model"]["id"] = str(model_folder)
    facts["measured"] |= {"judges": [judge, audit], "audit": audited}
    facts["measured"]["presence"]["scale"]["teacher"] = judge
    facts["provenance"]["settings"]["judge_url"] = "http://intern.example:8080/v1"
    (folder / "steering.json").write_text(json.dumps(facts))
    probe = json.loads((folder / "probe" / "probe.json").read_text())
    probe["model_id"], probe["learned"]["teacher"] = str(model_folder), judge
    (folder / "probe" / "probe.json").write_text(json.dumps(probe))


@pytest.mark.parametrize("formats", [("gguf", "snippet", "folded", "easysteer")])
def test_nothing_that_is_pushed_names_a_place_here(formats, finished, model_folder, tmp_path):
    with_places(finished, tmp_path / "named", model_folder)
    dry = tmp_path / "dry"
    push(tmp_path / "named", REPOSITORY, formats=formats, dry_run=dry)
    for path in (path for path in dry.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"intern.example" not in content, path
    config = calibrate.load(dry)
    assert config.model.id == "model"
    assert config.measured.judges == ["question:judge.gguf", "embedding:encoder"]
    loaded = open_model(config, str(model_folder))
    assert check_directory(dry, loaded, quick=True).passed


@pytest.mark.parametrize("name", ["bright", "me/bright/more", "me/bright@main", "my name/bright"])
def test_what_names_no_repository_is_refused(name, finished, tmp_path):
    with pytest.raises(InputError, match="must be USER/NAME"):
        push(finished.directory, name, dry_run=tmp_path / "dry")


def test_a_hub_that_does_not_answer_is_named(hub, finished):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ArtefactError, match="me/bright cannot be written"):
        push(finished.directory, REPOSITORY)


def test_an_unknown_format_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="exports must be of gguf"):
        push(finished.directory, REPOSITORY, formats=("onnx",), dry_run=tmp_path / "dry")
    assert not (tmp_path / "dry").exists()
