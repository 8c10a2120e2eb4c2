"""A tool that stood still for so long that another run took its machine over: it touches nothing of that run's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from fakehost import FOLDER, GOOD, Once, cut
from test_ssh import TEST, Lab, is_call
from test_ssh import cache as cache
from test_ssh import lab as lab

from orchestrator.lab import journal
from orchestrator.lab.journal import Journal, KernelId
from orchestrator.lab.lease import Lease
from orchestrator.lab.machine import MachineGone
from orchestrator.results import Outcome
from orchestrator.store import to_json

THEIRS = KernelId("6.9-theirs", "#1", "cc" * 20)
STATE = to_json(Journal("rack1", "testing", "t", "kim", GOOD, "boot-9", test=THEIRS))


class Taken:
    """Another run, of which the machine is from the moment that this is called: in its own kernel under test."""

    def __init__(self, lab: Lab, answers: bool = True) -> None:
        self.lab, self.answers = lab, answers
        self.before: list[int] = []

    def __call__(self) -> None:
        host, mine = self.lab.host, self.lab.target.machine.lease
        owner = dataclasses.replace(mine.owner, who="kim", node="desk2", boot_id="another")
        host.files[f"{FOLDER}/lease"] = Lease("b" * 16, owner).text.encode()
        host.files[f"{FOLDER}/journal.json"] = STATE
        host.epoch, host.up, host.kernel = host.epoch + 1, self.answers, THEIRS
        host.history.append(THEIRS)
        journal.write(self.lab.described, Journal("rack1", "testing", "t", "kim", GOOD, "boot-9", test=THEIRS))
        self.before.append(len(host.calls))

    def untouched(self, *, here_too: bool = True) -> None:
        """Nothing was done to the machine since, nor to its journal, there and here."""
        host = self.lab.host
        assert (host.kernel, host.history[-1]) == (THEIRS, THEIRS)
        assert host.files[f"{FOLDER}/journal.json"] == STATE
        here = journal.read(self.lab.described)
        assert here is not None and (here.owner == "kim" or not here_too)
        assert self.lab.quarantine == "" and self.lab.outside.said == []
        assert [call for call in host.calls[self.before[0] :] if call[0] != "sha256sum"] == []


def while_measuring(lab: Lab, act: Callable[[], None]) -> None:
    lab.host.on_program = lambda: lab.world.later(5.0, act)


def while_waiting_for_a_quiet_machine(lab: Lab, act: Callable[[], None]) -> None:
    Once(lab.host, is_call("read", "/proc/stat"), act)


@pytest.mark.parametrize("when", [while_measuring, while_waiting_for_a_quiet_machine])
def test_a_machine_that_was_taken_over_in_a_trial_is_left_alone(lab: Lab, when: Callable[..., None]) -> None:
    taken = Taken(lab)
    when(lab, taken)
    result = lab.run()
    assert result.machine_lost.startswith("rack1 was taken over by kim@desk2, process ")
    assert result.outcome in (Outcome.LOST, Outcome.NOT_RUN)
    taken.untouched()


def test_a_machine_that_was_taken_over_while_the_kernel_was_copied_is_left_alone(lab: Lab) -> None:
    lab.target.contact()
    taken = Taken(lab)
    Once(lab.host, is_call("append-block", lab.target.kernels[0].vmlinux_sha256[:40]), taken)
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN and result.machine_lost.startswith("rack1 was taken over by kim@desk2")
    found = lab.host.files[f"{FOLDER}/journal.json"], lab.host.kernel, lab.outside.said
    assert found == (STATE, THEIRS, []) and not [call for call in lab.host.calls if "--load" in call]


def test_a_machine_that_is_taken_over_on_its_way_home_is_not_restarted_by_stronger_means(lab: Lab) -> None:
    lab.host.reboot_works = False
    taken = Taken(lab)
    Once(lab.host, is_call("run", "systemctl reboot"), lambda: lab.world.later(30.0, taken))
    result = lab.run()
    assert result.machine_lost.startswith("rack1 was taken over by kim@desk2") and result.outcome is Outcome.OK
    taken.untouched()


def test_a_lease_that_the_kernel_under_test_does_not_show_is_nobody_elses(lab: Lab) -> None:
    """It need not mount the disk that it lies on."""
    hidden: list[bytes] = []

    def hide(call: str, words: tuple[str, ...]) -> None:
        path = f"{FOLDER}/lease"
        if lab.host.kernel == TEST and path in lab.host.files:
            hidden.append(lab.host.files.pop(path))
        elif lab.host.kernel == GOOD and hidden and lab.host.up:
            lab.host.files[path] = hidden.pop()

    lab.host.faults.append(hide)
    assert lab.run().outcome is Outcome.OK and lab.host.history == [GOOD, TEST, GOOD]


def test_the_next_trial_is_not_begun_on_a_machine_that_is_in_use(lab: Lab) -> None:
    assert lab.run().outcome is Outcome.OK
    taken = Taken(lab)
    taken()
    beat = f"{FOLDER}/lease.{'b' * 16}.beat"
    lab.world.later(5.0, lambda: lab.host.files.update({beat: b"1\n"}))
    with pytest.raises(MachineGone, match="rack1 is in use by kim@desk2"):
        lab.run(1)
    taken.untouched()


@pytest.mark.parametrize("answers_again", [True, False])
def test_a_silent_machine_is_not_restarted_from_outside_by_a_run_that_has_stood_still(
    lab: Lab, answers_again: bool
) -> None:
    """The new holder boots it just now: nobody can ask it whose it is."""
    taken = Taken(lab, answers=False)
    lab.outside.console_sysrq = ""

    def sleep() -> None:
        taken()
        lab.target.machine.doubt()
        if answers_again:
            lab.world.later(150.0, lambda: setattr(lab.host, "up", True))

    while_measuring(lab, sleep)
    result = lab.run(deadline_s=60.0)
    said = "rack1 was taken over by kim@desk2" if answers_again else "rack1 may be another run's, since this one stood"
    assert result.outcome is Outcome.HANG and result.machine_lost.startswith(said)
    taken.untouched(here_too=False)


def test_a_run_that_stood_still_and_kept_its_machine_brings_it_home(lab: Lab) -> None:
    lab.outside.console_sysrq = ""
    lab.host.reboot_works = lab.host.sysrq_works = False
    lab.host.on_program = lambda: lab.target.machine.doubt()
    assert lab.run().outcome is Outcome.OK and lab.outside.said == ["sysrq sb"] and lab.quarantine == ""


def test_a_silent_machine_that_turns_out_to_be_ours_still_is_asked_to_reboot(lab: Lab) -> None:
    def sleep() -> None:
        until = lab.world.now + 200
        lab.host.faults.append(lambda call, words: cut() if lab.world.now < until else None)
        lab.target.machine.doubt()

    while_measuring(lab, sleep)
    result = lab.run(deadline_s=60.0)
    assert (result.outcome, result.machine_lost, lab.outside.said) == (Outcome.OK, "", [])
    assert lab.host.history == [GOOD, TEST, GOOD]
