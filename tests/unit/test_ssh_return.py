"""The way home of a simulated machine: what may be done to it on the way, and what must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehost import FOLDER, GOOD, Once, cut, lab_host
from test_ssh import TEST, Killed, Lab, as_the_next_tool, at_home, at_home_state, is_call, kill
from test_ssh import cache as cache
from test_ssh import lab as lab

from orchestrator.lab.journal import Journal
from orchestrator.results import Outcome
from orchestrator.store import to_json

# --- what a journal says, which others can write ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/home", f"{FOLDER}/trials/..", f"{FOLDER}/trials/", f"{FOLDER}/trials/../../..", f"{FOLDER}/files/x", "."]
)
def test_nothing_but_a_trials_folder_is_removed_as_root_whatever_the_journal_names(lab: Lab, path: str) -> None:
    lab.host.folders.add(FOLDER)
    lab.host.files[f"{FOLDER}/journal.json"] = to_json(Journal("rack1", "testing", "t", "x", GOOD, "boot-0", trial=path))
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
