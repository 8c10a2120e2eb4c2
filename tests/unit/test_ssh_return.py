"""The way home of a simulated machine: what may be done to it on the way, and what must not be lost."""

from __future__ import annotations

import pytest
from fakehost import FOLDER, GOOD, Once, cut
from test_ssh import Killed, Lab, as_the_next_tool, at_home, is_call, kill, state_of
from test_ssh import cache as cache
from test_ssh import lab as lab

from orchestrator.lab import journal
from orchestrator.lab.journal import Journal
from orchestrator.results import Outcome
from orchestrator.store import to_json

# --- what a journal says, which others can write ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/home", f"{FOLDER}/trials/..", f"{FOLDER}/trials/", f"{FOLDER}/trials/../../..", f"{FOLDER}/files/x", "."]
)
def test_nothing_but_a_trials_folder_is_removed_as_root_whatever_the_journal_names(lab: Lab, path: str) -> None:
    lab.host.folders.add(FOLDER)
    lab.host.files[f"{FOLDER}/journal.json"] = to_json(
        Journal("rack1", "testing", "t", "x", GOOD, "boot-0", trial=path)
    )
    lab.target.contact()
    assert not [call for call in lab.host.calls if call[0] == "rm" or call[1:2] == ("stop",)]
    assert f"rack1: leaving {path} alone, which its journal names: that is no folder of a trial" in lab.said
    at_home(lab)


def test_the_folder_of_a_trial_that_was_left_is_removed(lab: Lab) -> None:
    Once(lab.host, is_call("size", "/done"), kill)
    with pytest.raises(Killed):
        lab.run()
    as_the_next_tool(lab)
    assert [path for path in lab.host.files if "/trials/" in path]
    lab.target.contact()
    assert not [path for path in lab.host.files if "/trials/" in path]
    at_home(lab)


# --- a sample that was finished ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "restarts"),
    [
        (45, []),  # longer than an answer may take
        (100, ["power"]),  # longer than a copy: the machine, which seems dead, is restarted, and has it still
    ],
)
def test_a_finished_sample_survives_a_cut_of_any_length_when_it_is_to_be_fetched(
    lab: Lab, seconds: float, restarts: list[str]
) -> None:
    until: list[float] = []

    def fault(call: str, words: tuple[str, ...]) -> None:
        if call == "size" and words[0].endswith("status.log") and not until:
            until.append(lab.world.now + seconds)
        if until and lab.world.now < until[0]:
            cut()

    lab.host.faults.append(fault)
    result = lab.run()
    assert (result.outcome, result.reason) == (Outcome.OK, "") and result.recording_sha256
    assert (lab.folder / "trial-0/recording.bin").read_bytes() == lab.host.program.recording
    assert [word for word in lab.outside.said if word == "power"] == restarts
    at_home(lab)


def test_a_sample_that_was_finished_while_the_machine_was_out_of_reach_past_its_deadline_counts(lab: Lab) -> None:
    def break_down() -> None:
        until = lab.world.now + 100
        lab.host.faults.append(lambda call, words: cut() if lab.world.now < until else None)

    Once(lab.host, is_call("size", "/done"), break_down)
    result = lab.run(deadline_s=60.0)
    assert result.outcome is Outcome.OK and result.recording_sha256
    assert any("had ended before the connection broke" in line for line in lab.said)
    at_home(lab)


def test_what_was_not_finished_when_the_machine_was_restarted_is_no_sample(lab: Lab) -> None:
    lab.host.program.seconds = 1e6
    Once(lab.host, is_call("size", "/done"), lambda: lab.host.die())
    assert lab.run(deadline_s=90.0).outcome is Outcome.HANG
    assert not (lab.folder / "trial-0/recording.bin").exists()


# --- a machine that nothing was done to -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["append-block", "run"])
def test_a_cut_while_preparing_that_outlives_all_deadlines_is_no_trial_and_no_reason_to_restart_anything(
    lab: Lab, call: str
) -> None:
    """While the kernel is copied, and while it is loaded: copy_s is 60 s, return_s 120 s."""
    until: list[float] = []
    part = "--load" if call == "run" else ""

    def fault(now: str, words: tuple[str, ...]) -> None:
        if is_call(call, part)(now, words) and state_of(lab) in ("reachable", "booting") and not until:
            until.append(lab.world.now + 150)
        if until and lab.world.now < until[0]:
            cut()

    lab.target.contact()
    lab.host.faults.append(fault)
    result = lab.run()
    assert (result.outcome, result.reason) == (
        Outcome.NOT_RUN,
        "rack1 cannot be reached: the connection was cut by the test",
    )
    assert (lab.host.history, lab.outside.said, result.machine_lost) == ([GOOD], [], "")
    at_home(lab)


def test_a_machine_that_broke_while_preparing_is_fetched_back_when_waiting_did_not_help(lab: Lab) -> None:
    lab.target.contact()
    Once(lab.host, is_call("append-block"), lab.host.die)
    assert lab.run().outcome is Outcome.NOT_RUN and lab.outside.said == ["sysrq sb", "power"]
    at_home(lab)


# --- the console outside a trial --------------------------------------------------------------------------------------


def test_a_machine_that_a_killed_tool_left_hanging_is_restarted_over_its_console(lab: Lab) -> None:
    lab.outside.console_sysrq = ""
    Once(lab.host, is_call("size", "/done"), kill)
    with pytest.raises(Killed):
        lab.run()
    as_the_next_tool(lab)
    lab.outside.unwatch()  # as it ends with its tool
    lab.host.die()
    lab.target.contact()
    assert lab.outside.said == ["sysrq sb"] and not lab.outside.watching
    at_home(lab)


def test_a_panic_between_two_trials_is_seen_on_the_console(lab: Lab) -> None:
    """Once somebody looks: the machine restarts by itself, and nothing else is done to it."""
    lab.target.contact()
    lab.host.die()
    lab.world.later(60.0, lambda: lab.outside.print("Kernel panic - not syncing: x\n"))
    lab.world.later(130.0, lambda: lab.host.restart(GOOD))
    assert lab.run().outcome is Outcome.OK and lab.outside.said == []
    log = journal.folder(lab.described) / "recovery.log"
    assert log.read_text() == "Kernel panic - not syncing: x\n"
    at_home(lab)
