"""store.py and manifest.py: atomic, locked, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import store as store_module
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment import Experiment, load
from orchestrator.manifest import Manifest, file_id, make_manifest
from orchestrator.plan import make_plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store, file_sha256, load_json, to_json, write_atomic

WRITER = Path(__file__).parents[1] / "data" / "store_writer.py"


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return make_experiment(tmp_path)


def make_experiment(folder: Path, boots: int = 2, extra: str = "") -> Experiment:
    (folder / "host.config").write_text("CONFIG_KVM=y\n")
    (folder / "v1.patch").write_text("a patch\n")
    path = folder / "experiment.yaml"
    path.write_text(
        "name: demo\nkernel: {sources: [{tree: linux}], fragments: [host.config]}\n"
        "arms: {base: [], v1: [v1.patch]}\ntarget: {kind: qemu}\ncells: {quiet: {storm: none}}\n"
        f"schedule: {{boots: {boots}}}\n{extra}"
    )
    return load(path)


def manifest_of(experiment: Experiment, accel: str = "icount") -> Manifest:
    return make_manifest(experiment, ["orch", "run"], accel, "for a test", make_plan(experiment).seeds)


def open_run(tmp_path: Path, experiment: Experiment) -> Store:
    return Store.open_or_create(tmp_path / "results", experiment, manifest_of(experiment))


def result(trial_id: str, **changes: object) -> TrialResult:
    whole = TrialResult(
        id=trial_id, arm="base", cell="quiet", boot=0, block=0, seed=1, outcome=Outcome.OK, reason="", trace=(),
        warnings=(), boot_seconds=0.5, wall_seconds=1.5, recording_sha256="", rerun="orch run x",
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def finish(store: Store, trial_id: str, recording: bytes = b"samples") -> TrialResult:
    folder = store.begin_trial(trial_id)
    (folder / "recording.bin").write_bytes(recording)
    done = result(trial_id, recording_sha256=hashlib.sha256(recording).hexdigest())
    store.finish_trial(done)
    return done


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_new_run_has_its_manifest_from_the_first_moment(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        assert store.run.parent == tmp_path / "results" and store.run.name.startswith("demo-20")
        assert store.manifest == dataclasses.replace(
            manifest_of(experiment), run=store.run.name, started=store.manifest.started
        )
        assert store.manifest.arms[1].patches[0].sha256 == hashlib.sha256(b"a patch\n").hexdigest()
        assert store.manifest.config_text == experiment.path.read_text()
        assert store.status is None
        assert [path.name for path in (tmp_path / "results").iterdir() if path.name != ".lock"] == [store.run.name]


def test_the_same_command_continues_an_unfinished_run(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as first:
        done = finish(first, "000")
    with open_run(tmp_path, experiment) as second:
        assert second.run == first.run
        assert second.finished_trials() == (done,)


def test_other_guest_programs_start_another_run(tmp_path: Path, experiment: Experiment) -> None:
    manifest = make_manifest(experiment, ["orch"], "icount", "", make_plan(experiment).seeds, guests_id="a")
    with Store.open_or_create(tmp_path / "results", experiment, manifest) as first:
        pass
    other = make_manifest(experiment, ["orch"], "icount", "", make_plan(experiment).seeds, guests_id="b")
    with Store.open_or_create(tmp_path / "results", experiment, other) as second:
        assert second.run != first.run
    with Store.open_or_create(tmp_path / "results", experiment, manifest) as third:
        assert third.run == first.run


def test_a_finished_run_is_not_continued(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as first:
        first.finish("partial")
        assert first.status is not None and first.status.status == "partial"
    with open_run(tmp_path, experiment) as second:
        assert second.run != first.run


def test_the_newest_of_several_unfinished_runs_is_continued(tmp_path: Path, experiment: Experiment) -> None:
    results = tmp_path / "results"
    with open_run(tmp_path, experiment) as first:
        first.finish("complete")
    with open_run(tmp_path, experiment) as second:
        pass
    (first.run / "status.json").unlink()
    assert Store.open_or_create(results, experiment, manifest_of(experiment)).run == second.run


@pytest.mark.parametrize("change", ["patch", "fragment", "schedule", "accel"])
def test_other_inputs_start_another_run(tmp_path: Path, experiment: Experiment, change: str) -> None:
    with open_run(tmp_path, experiment) as first:
        pass
    if change == "patch":
        (tmp_path / "v1.patch").write_text("another patch\n")
    elif change == "fragment":
        (tmp_path / "host.config").write_text("CONFIG_KVM=m\n")
    elif change == "schedule":
        experiment = make_experiment(tmp_path, boots=3)
    manifest = manifest_of(experiment, accel="tcg" if change == "accel" else "icount")
    with Store.open_or_create(tmp_path / "results", experiment, manifest) as second:
        assert second.run != first.run


def test_comments_and_the_place_of_the_files_do_not_matter(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "moved").mkdir()
    moved = make_experiment(tmp_path / "moved", extra="# A comment.\ndescription: in other words\n")
    # A relative kernel tree is a place as well: give both the same.
    moved = dataclasses.replace(moved, kernel=dataclasses.replace(moved.kernel, sources=experiment.kernel.sources))
    assert manifest_of(moved).fingerprint == manifest_of(experiment).fingerprint


def test_a_folder_of_patches_is_identified_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "0001.patch").write_text("one")
    (tmp_path / "0002.patch").write_text("two")
    before = file_id(tmp_path).sha256
    (tmp_path / "0002.patch").rename(tmp_path / "0003.patch")
    renamed = file_id(tmp_path).sha256
    (tmp_path / "0003.patch").write_text("three")
    assert len({before, renamed, file_id(tmp_path).sha256}) == 3
    with pytest.raises(UserError):
        file_id(tmp_path / "nothing")


def test_a_damaged_manifest_is_not_continued(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as first:
        pass
    (first.run / "manifest.json").write_bytes(b'{"run": 3}')
    with open_run(tmp_path, experiment) as second:
        assert second.run != first.run
    with pytest.raises(StoreError, match=r"manifest\.json is damaged: "):
        _ = Store.read(first.run).manifest


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        for opener in (lambda: open_run(tmp_path, experiment), lambda: Store.open(store.run)):
            with pytest.raises(StoreError, match=rf"{store.run.name} is in use by pid {os.getpid()}: .*pytest"):
                opener()
        assert Store.read(store.run).manifest == store.manifest
    Store.open(store.run).__exit__()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for opener in (Store.open, Store.read):
        with pytest.raises(StoreError, match=r"is not a run: it has no manifest\.json"):
            opener(tmp_path)


def test_results_that_are_a_file_are_an_error(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(StoreError, match="cannot use the results folder"):
        open_run(tmp_path, experiment)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "link/x.json", "", "."])
def test_nothing_leaves_the_run(tmp_path: Path, experiment: Experiment, name: str) -> None:
    with open_run(tmp_path, experiment) as store:
        (store.run / "link").symlink_to(tmp_path)
        with pytest.raises(StoreError, match="leads out of the run's folder"):
            store.save(name, result("000"))
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("trial_id", ["..", "../000", "00", "000/..", "", "٣٣٣", "000\n"])
def test_trial_ids_are_digits(tmp_path: Path, experiment: Experiment, trial_id: str) -> None:
    with open_run(tmp_path, experiment) as store, pytest.raises(StoreError):
        store.begin_trial(trial_id)


def test_json_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(to_json(result("000", outcome=Outcome.PANIC, trace=("a", "b"))))
    assert load_json(path, TrialResult) == result("000", outcome=Outcome.PANIC, trace=("a", "b"))
    path.write_bytes(path.read_bytes().replace(b'"boot": 0', b'"boot": "0"'))
    with pytest.raises(StoreError, match=r"is damaged: boot: Input should be a valid integer"):
        load_json(path, TrialResult)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged: the file"):
        load_json(path, TrialResult)


def test_tuples_are_saved_too(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        store.save("some/results.json", (result("000"), result("001")))
        assert store.load("some/results.json", tuple[TrialResult, ...]) == (result("000"), result("001"))


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_trial_appears_only_when_it_is_whole(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        folder = store.begin_trial("000")
        (folder / "console.log").write_text("booting\n")
        assert not store.trial_dir("000").exists() and store.finished_trials() == ()
        assert store.begin_trial("000") == folder and list(folder.iterdir()) == []
        done = finish(store, "000")
        assert store.finished_trials() == (done,)
        assert sorted(path.name for path in (store.run / "trials").iterdir()) == ["000"]


@pytest.mark.parametrize("damage", ["recording", "missing", "result", "renamed"])
def test_a_damaged_trial_counts_as_never_run(tmp_path: Path, experiment: Experiment, damage: str) -> None:
    with open_run(tmp_path, experiment) as store:
        kept, _ = finish(store, "000"), finish(store, "001")
        folder = store.trial_dir("001")
        if damage == "recording":
            (folder / "recording.bin").write_bytes(b"sampleS")
        elif damage == "missing":
            (folder / "recording.bin").unlink()
        elif damage == "result":
            (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:-9])
        else:
            folder.rename(folder.with_name("002"))
        assert store.finished_trials() == (kept,)
        again = finish(store, "001")
        assert store.finished_trials() == (kept, again)


def test_a_trial_that_panicked_is_finished_without_a_recording(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        store.begin_trial("000")
        store.finish_trial(result("000", outcome=Outcome.PANIC, reason="Kernel panic"))
        assert [done.outcome for done in store.finished_trials()] == [Outcome.PANIC]


def test_a_recording_that_changed_after_its_check_is_refused(tmp_path: Path, experiment: Experiment) -> None:
    with open_run(tmp_path, experiment) as store:
        (store.begin_trial("000") / "recording.bin").write_bytes(b"x")
        with pytest.raises(StoreError, match="changed after it was checked"):
            store.finish_trial(result("000", recording_sha256="0" * 64))
        assert store.finished_trials() == ()


def test_killed_at_any_moment_and_resumed_loses_and_repeats_nothing(tmp_path: Path, experiment: Experiment) -> None:
    """A writer of 120 trials is killed with SIGKILL at ten random moments, then gets to its end."""
    del experiment
    make_experiment(tmp_path, boots=60)
    chance = random.Random(20210125)
    kills = 0
    while True:
        writer = subprocess.Popen([sys.executable, WRITER, tmp_path], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        if kills < 10:
            time.sleep(chance.uniform(0, 0.08))
            writer.kill()
        code = writer.wait(600)
        writer.stdout.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    runs = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    assert len(runs) == 1 and kills >= 3
    with Store.open(runs[0]) as store:
        finished = store.finished_trials()
        assert [done.id for done in finished] == [
            trial.id for trial in make_plan(load(tmp_path / "experiment.yaml")).trials
        ]
        # Each trial notes its completion after its rename; a kill between the two may lose that note, never add one.
        notes = (tmp_path / "notes").read_text().split()
        assert len(notes) == len(set(notes)) and set(notes) <= {done.id for done in finished}
        assert len(notes) >= len(finished) - kills
        for done in finished:
            assert file_sha256(store.trial_dir(done.id) / "recording.bin") == done.recording_sha256
        assert sorted(path.name for path in (store.run / "trials").iterdir()) == [done.id for done in finished]
        assert not list(store.run.rglob("*.tmp")) and not list(store.run.rglob(".doomed-*"))
