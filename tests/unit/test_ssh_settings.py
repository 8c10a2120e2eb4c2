"""Settings of a simulated machine whose kernels have different ones: what is put back, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehost import GOOD, Once, lab_host
from test_ssh import ALL, TEST, Killed, Lab, as_the_next_tool, at_home, kill
from test_ssh import cache as cache

from orchestrator.lab import tuning
from orchestrator.lab.journal import Setting
from orchestrator.lab.remote import Reply
from orchestrator.results import Outcome

GOVERNOR = tuning.GOVERNOR.format("cpu0")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """The kernel under test starts with another governor, which the known-good one does not have, and other swap."""
    made = Lab(tmp_path, lab_host(tmp_path, may_change=ALL))
    made.host.kernel_defaults[TEST] = {GOVERNOR: "schedutil", tuning.KSM: "0"}
    set_one = made.host.agent_set

    def agent_set(path: str, value: str) -> Reply:
        if (made.host.kernel, value) == (GOOD, "schedutil"):
            return Reply(1, "", "write of schedutil: Invalid argument")
        return set_one(path, value)

    made.host.agent_set = agent_set  # type: ignore[method-assign]
    return made


def test_the_known_good_kernel_gets_its_own_settings_back_and_not_those_of_the_kernel_under_test(lab: Lab) -> None:
    result = lab.run()
    assert (result.outcome, result.machine_lost) == (Outcome.OK, "")
    at_home(lab)


def test_what_was_set_by_hand_in_the_known_good_kernel_is_there_again(lab: Lab) -> None:
    lab.host.settings[GOVERNOR] = "ondemand"
    lab.host.settings[tuning.THP] = "always madvise [never]"
    assert lab.run().outcome is Outcome.OK
    assert lab.host.settings[GOVERNOR] == "ondemand" and lab.host.settings[tuning.THP] == "never"


def test_nothing_that_may_not_be_changed_is_written_in_the_known_good_kernel(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, may_change=("thp",)))
    lab.host.settings[GOVERNOR] = "ondemand"
    assert lab.run().outcome is Outcome.OK
    written = {call[2] for call in lab.host.calls if call[1:2] == ("set",)}
    assert written == {tuning.THP}


def test_the_kernel_that_set_a_setting_puts_it_back_before_it_is_left(lab: Lab) -> None:
    """What a reboot does not reset, as a turbo bit in an MSR."""
    last: dict[str, str] = {}

    def leave() -> None:
        last.update(lab.host.settings)

    Once(lab.host, lambda call, words: words[-2:] == ("systemctl", "reboot"), leave)
    assert lab.run().outcome is Outcome.OK
    assert last == {**lab.host.defaults, GOVERNOR: "schedutil", tuning.KSM: "0", tuning.THP: "always"}


def test_after_a_crash_of_the_running_kernel_its_settings_of_before_are_put_back(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, boot="none", may_change=("governor",)))
    lab.host.settings[GOVERNOR] = "ondemand"
    lab.host.on_program = lambda: lab.world.later(5.0, lambda: lab.host.restart(GOOD))
    assert lab.run().outcome is Outcome.LOST
    assert lab.host.settings[GOVERNOR] == "ondemand"


def test_a_tool_that_is_killed_in_the_kernel_under_test_leaves_word_of_the_known_good_kernels_settings(
    lab: Lab,
) -> None:
    lab.host.settings[GOVERNOR] = "ondemand"
    Once(lab.host, lambda call, words: "/done" in " ".join(words), kill)
    with pytest.raises(Killed):
        lab.run()
    as_the_next_tool(lab)
    lab.target.contact()
    assert lab.host.kernel == GOOD and lab.host.settings[GOVERNOR] == "ondemand"


def test_a_reply_about_swap_that_got_lost_is_no_refusal(lab: Lab) -> None:
    """Neither switch can be thrown twice: the kernel refuses what is so already."""
    lab.target.contact()
    machine = lab.target.machine
    lab.host.agent_swapoff = lambda device: Reply(1, "", f"swapoff {device}: Invalid argument")  # type: ignore[method-assign]
    lab.host.agent_swapon = lambda device: Reply(1, "", f"swapon {device}: Device or resource busy")  # type: ignore[method-assign]
    off, on = (Setting("swap", "/dev/vda2", value) for value in ("off", "on"))
    assert tuning.apply(machine.link, machine.agent, on) == ""
    assert tuning.apply(machine.link, machine.agent, off).startswith("cannot set swap to off: swapoff /dev/vda2")
    lab.host.swap.clear()
    assert tuning.apply(machine.link, machine.agent, off) == ""
    assert tuning.apply(machine.link, machine.agent, on).startswith("cannot set swap to on: swapon /dev/vda2")
