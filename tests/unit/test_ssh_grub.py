"""``boot: grub`` on a simulated machine: what it leaves on /boot, and commands that cannot be done twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fakehost import Once, cut
from test_ssh import TEST, Lab, at_home, grub_lab, is_call
from test_ssh import cache as cache

from orchestrator.lab import root
from orchestrator.lab.machine import NotRun
from orchestrator.lab.remote import Reply
from orchestrator.results import Outcome

CUSTOM = "/boot/grub/custom.cfg"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return grub_lab(tmp_path)


def image(lab: Lab, content: bytes) -> None:
    """The kernel of the next trial."""
    (lab.folder / "bzImage").write_bytes(content)
    lab.host.kernels[content] = TEST


def on_boot(lab: Lab) -> list[bytes]:
    return [data for path, data in sorted(lab.host.files.items()) if path.startswith("/boot/orch/")]


def test_of_all_kernels_only_the_last_one_stays_on_boot_and_no_entry(lab: Lab) -> None:
    for number, content in enumerate((b"first", b"second", b"third")):
        image(lab, content)
        assert lab.run(number).outcome is Outcome.OK
        assert on_boot(lab) == [content]
        assert lab.host.files[CUSTOM] == b"# the admin's own\n"
    copied = [call for call in lab.host.calls if call[0] == "cp"]
    assert lab.run(3).outcome is Outcome.OK
    assert [call for call in lab.host.calls if call[0] == "cp"] == copied, "the same one again is there already"


def test_a_damaged_kernel_on_boot_is_replaced(lab: Lab) -> None:
    image(lab, b"kernel")
    lab.host.files[f"/boot/orch/{hashlib.sha256(b'kernel').hexdigest()[:40]}"] = b"kernex"
    assert lab.run().outcome is Outcome.OK and on_boot(lab) == [b"kernel"]


def test_what_others_wrote_into_the_menu_stays_as_it_is_whatever_it_is(lab: Lab) -> None:
    lab.host.files[CUSTOM] = b"# caf\xe9\n"
    assert lab.run().outcome is Outcome.OK and lab.host.files[CUSTOM] == b"# caf\xe9\n"


def test_a_full_boot_gets_room_from_kernels_of_ours_or_the_trial_is_not_run(lab: Lab) -> None:
    image(lab, b"first")
    assert lab.run().outcome is Outcome.OK
    image(lab, b"second")
    lab.host.boot_free_bytes = 1 << 20
    result = lab.run(1)
    assert result.outcome is Outcome.NOT_RUN and result.machine_lost == ""
    assert result.reason == "grub refused: 1024 KiB are free for /boot/orch, and 1025 KiB are needed" and not on_boot(
        lab
    )
    lab.host.files["/boot/orch/old"] = b"x"
    remove = lab.host.do_rm

    def do_rm(*words: str) -> object:
        if "/boot/orch/old" in words:
            lab.host.boot_free_bytes = 1 << 30
        return remove(*words)

    lab.host.do_rm = do_rm  # type: ignore[assignment,method-assign]
    assert lab.run(2).outcome is Outcome.OK
    at_home(lab)


# --- a reply that got lost --------------------------------------------------------------------------------------------


def lose_reply(lab: Lab, *words: str) -> Once:
    """The first command with these words is done, and the connection breaks before it has answered."""
    matches: Callable[[str, tuple[str, ...]], bool] = is_call("run", " ".join(words))

    def act() -> None:
        lab.host.execute(called[-1])
        cut()

    called: list[tuple[str, ...]] = []
    lab.host.faults.append(lambda call, argv: called.append(argv) if matches(call, argv) else None)
    return Once(lab.host, matches, act)


@pytest.mark.parametrize("command", ["mv -- /boot/orch", "mv -- /boot/grub/custom.cfg.new", "grub-reboot", "install"])
def test_a_reply_that_gets_lost_while_grub_is_made_ready_is_no_refusal(lab: Lab, command: str) -> None:
    fault = lose_reply(lab, command)
    result = lab.run()
    assert fault.struck and (result.outcome, result.reason) == (Outcome.OK, "")
    at_home(lab)


@pytest.mark.parametrize("command", ["ln -f", "mv -T", "mkdir"])
def test_a_reply_that_gets_lost_while_a_root_is_laid_out_is_no_refusal(lab: Lab, command: str) -> None:
    lab.target.contact()
    fault = lose_reply(lab, command)
    source = lab.folder / "x"
    source.write_bytes(b"q" * 3000)
    place = root.lay_out(lab.target.machine, {"bin/x": source, "lib/y": source})
    assert fault.struck and lab.host.files[f"{place}/bin/x"] == source.read_bytes()


def test_a_root_that_cannot_be_named_is_told(lab: Lab) -> None:
    lab.target.contact()
    lab.host.do_mv = lambda *words: Reply(1, "", "mv: Permission denied")  # type: ignore[method-assign]
    with pytest.raises(NotRun, match=r"mv -T .*: mv: Permission denied"):
        root.lay_out(lab.target.machine, {"bin/x": lab.folder / "lab_agent"})
