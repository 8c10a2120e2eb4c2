"""lab/contact.py on a simulated machine: what it refuses takes it out of the run, and ends nothing else."""

from __future__ import annotations

import hashlib

import pytest
from fakehost import FOLDER
from test_ssh import Lab, at_home
from test_ssh import cache as cache
from test_ssh import lab as lab

from orchestrator.lab.lease import Lease, Owner
from orchestrator.lab.machine import MachineGone
from orchestrator.lab.remote import Reply
from orchestrator.results import Outcome


def fill(lab: Lab, *, gives_room: bool) -> None:
    """A disk on which nothing fits any more; with ``gives_room`` what earlier runs left is why."""
    lab.host.free_bytes = 0
    remove = lab.host.do_rm

    def do_rm(*words: str) -> Reply:
        if gives_room:
            lab.host.free_bytes = 8 << 30
        return remove(*words)

    lab.host.do_rm = do_rm  # type: ignore[method-assign]


@pytest.mark.parametrize("agent_is_there", [False, True])
def test_a_full_disk_at_the_first_contact_is_the_machines_end_and_not_the_runs(lab: Lab, agent_is_there: bool) -> None:
    if agent_is_there:
        agent = (lab.folder / "lab_agent").read_bytes()
        lab.host.files[f"{FOLDER}/files/{hashlib.sha256(agent).hexdigest()[:40]}"] = agent
    fill(lab, gives_room=False)
    with pytest.raises(MachineGone, match="rack1 is quarantined: it has no room: 0 MiB are free for"):
        lab.run()
    assert lab.quarantine.startswith("has no room: 0 MiB")


def test_a_full_disk_at_the_first_contact_gets_room_from_what_earlier_runs_left(lab: Lab) -> None:
    assert lab.run().outcome is Outcome.OK
    lab.target.close()
    lab.target = lab.new_target()
    fill(lab, gives_room=True)
    assert lab.run(1).outcome is Outcome.OK
    at_home(lab)


def test_nothing_is_removed_from_a_full_disk_that_is_anothers(lab: Lab) -> None:
    lab.target.contact()
    mine = lab.target.machine.lease
    values = {name: getattr(mine.owner, name) for name in Owner.__dataclass_fields__}
    other = Lease("b" * 16, Owner(**(values | {"who": "kim", "node": "desk2", "boot_id": "another"})))
    lab.host.files[f"{FOLDER}/lease"] = other.text.encode()
    beat = f"{FOLDER}/lease.{'b' * 16}.beat"
    lab.world.later(5.0, lambda: lab.host.files.update({beat: b"1\n"}))
    fill(lab, gives_room=True)
    lab.target = lab.new_target()
    with pytest.raises(MachineGone, match="rack1 is in use by kim@desk2"):
        lab.target.contact()
    assert not [call for call in lab.host.calls if call[0] == "rm"] and lab.quarantine == ""


@pytest.mark.parametrize("trials_before", [0, 1])
def test_a_lease_that_cannot_be_written_takes_the_machine_out_of_the_run(lab: Lab, trials_before: int) -> None:
    for number in range(trials_before):
        assert lab.run(number).outcome is Outcome.OK
        del lab.host.files[f"{FOLDER}/lease"]
    lab.host.agent_swap_token = lambda *words: Reply(1, "", "open lease.7: Read-only file system")  # type: ignore[method-assign]
    with pytest.raises(MachineGone, match=r"rack1 cannot be used: its lease cannot be taken: open lease.7: Read-only"):
        lab.run(9)


def test_an_agent_that_cannot_be_copied_takes_the_machine_out_of_the_run(lab: Lab) -> None:
    lab.host.do_sha256sum = lambda *words: Reply(127, "", "sha256sum: command not found")  # type: ignore[method-assign]
    with pytest.raises(MachineGone, match="rack1 cannot be used: sha256sum failed on rack1: sha256sum: command not"):
        lab.run()
