"""build_arms on the toy tree: each kernel once, incremental, exact, and classified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toykernel import Toy, compiled, snapshot

from orchestrator.errors import BuildError, ConfigError, PatchError
from orchestrator.kernel import elf
from orchestrator.kernel.build import Progress
from orchestrator.kernel.patch import read_series


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def swap(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def faster(toy: Toy) -> Path:
    return toy.patch("faster", {"mmu.c": swap("return 1;", "return 2;")})


def test_an_arm_compiles_only_what_its_patch_changed(toy: Toy) -> None:
    kernels = toy.build({"base": [], "v1": [faster(toy)]})
    assert compiled(kernels["base"]) == ["kvm.o", "mmu.o", "start.o"]
    assert compiled(kernels["v1"]) == ["mmu.o"]
    assert kernels["base"].vmlinux_sha256 != kernels["v1"].vmlinux_sha256
    assert kernels["base"].build_id != kernels["v1"].build_id
    assert {kernel.release for kernel in kernels.values()} == {"5.10.7-toy"}


def test_what_is_kept_of_a_kernel(toy: Toy) -> None:
    base = toy.build({"base": []})["base"]
    assert base.vmlinux and base.config and base.system_map
    assert elf.build_id(base.vmlinux) == base.build_id and len(base.build_id) == 40
    assert "CONFIG_KVM=y" in base.config.read_text()
    assert " mmu_notifier_retry\n" in base.system_map.read_text()
    assert b"mmu_notifier_retry" not in base.vmlinux.read_bytes()  # Stripped: symbols are in System.map.
    assert "make -C" in base.log.read_text()


def test_an_unchanged_kernel_is_not_built_again(toy: Toy) -> None:
    first = toy.build({"base": [], "v1": [faster(toy)]})
    steps: list[Progress] = []
    second = toy.build({"base": [], "v1": [faster(toy)]}, steps.append)
    assert steps == []
    assert [kernel.cached for kernel in first.values()] == [False, False]
    assert [kernel.cached for kernel in second.values()] == [True, True]
    assert second["v1"].build_seconds == first["v1"].build_seconds > 0


def test_a_comment_in_a_fragment_builds_nothing_and_an_option_does(toy: Toy) -> None:
    toy.build({"base": []})
    toy.fragment.write_text("# a reason\n" + toy.fragment.read_text())
    assert toy.build({"base": []})["base"].cached
    toy.fragment.write_text(toy.fragment.read_text() + "CONFIG_INPUT=y\n")
    assert not toy.build({"base": []})["base"].cached


def test_a_damaged_kernel_in_the_cache_is_built_again(toy: Toy) -> None:
    arms = {"base": [], "v1": [faster(toy)]}
    first = toy.build(arms)["v1"]
    assert first.vmlinux
    first.vmlinux.write_bytes(first.vmlinux.read_bytes()[:-1])
    again = toy.build(arms)
    assert again["base"].cached and not again["v1"].cached
    assert again["v1"].vmlinux_sha256 == first.vmlinux_sha256


def test_the_same_inputs_give_the_same_bytes_elsewhere(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = toy.build({"base": [], "v1": [faster(toy)]})
    for name, value in {"KCFLAGS": "-DNOISE -O0", "MAKEFLAGS": "n", "LOCALVERSION": "-mine", "USER": "x"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "other").mkdir()
    other = Toy(tmp_path / "other")
    second = other.build({"v1": [faster(other)]}) | other.build({"base": []})
    for arm in ("base", "v1"):
        assert first[arm].vmlinux_sha256 == second[arm].vmlinux_sha256
        assert second[arm].log.is_relative_to(other.cache)


def test_arms_do_not_see_each_other(toy: Toy, tmp_path: Path) -> None:
    """v2 starts from the base, though v1's objects are newer than the sources that were put back."""
    v2 = {"kvm.c": swap("seq);", "seq + 1);")}
    together = toy.build({"base": [], "v1": [faster(toy)], "v2": [toy.patch("v2", v2)]})
    (tmp_path / "other").mkdir()
    other = Toy(tmp_path / "other")
    alone = other.build({"base": [], "v2": [other.patch("v2", v2)]})
    assert compiled(together["v2"]) == ["kvm.o"]
    assert together["v2"].vmlinux_sha256 == alone["v2"].vmlinux_sha256


def test_a_base_with_patches_of_its_own(toy: Toy, tmp_path: Path) -> None:
    fix = toy.patch("fix", {"mmu.c": swap("return 0;", "return 3;"), "extra.c": "int extra;\n"})
    v1 = toy.patch("v1", {"kvm.c": swap("seq);", "seq + 1);")})
    together = toy.build({"base": [fix], "with": [fix, v1], "without": [v1]})
    assert compiled(together["with"]) == ["kvm.o"]  # What both arms have of the fix is not compiled twice.
    assert compiled(together["without"]) == ["kvm.o", "mmu.o"]
    (tmp_path / "other").mkdir()
    other = Toy(tmp_path / "other")
    assert together["with"].vmlinux_sha256 == other.build({"a": [fix, v1]})["a"].vmlinux_sha256


def test_a_created_file_is_gone_in_the_next_arm(toy: Toy) -> None:
    new = toy.patch("new", {"include/sub/new.h": "#define NEW 7\n", "mmu.c": swap("return 1;", "return NEW;")})
    include = toy.patch("include", {"kvm.c": swap('#include "kvm.h"', '#include "kvm.h"\n#include "sub/new.h"')})
    kernels = toy.build({"base": [], "v1": [new], "v2": [include]})
    assert kernels["v1"].build == "failed"  # mmu.c does not include it.
    assert kernels["v2"].build == "failed" and "sub/new.h" in kernels["v2"].error
    assert not (toy.work() / "src" / "include" / "sub").exists()


def test_nobody_writes_to_the_tree(toy: Toy) -> None:
    before, pristine = snapshot(toy.origin), snapshot(toy.tree().path)
    broken = toy.patch("broken", {"kvm.c": swap("return", "retrun")})
    toy.build({"base": [], "v1": [faster(toy)], "broken": [broken]})
    assert snapshot(toy.origin) == before
    assert snapshot(toy.tree().path) == pristine
    assert snapshot(toy.work() / "src") == pristine


def test_an_arm_that_does_not_compile_is_a_result(toy: Toy) -> None:
    broken = toy.patch("broken", {"kvm.c": swap("return mmu", "return mmmu")})
    kernels = toy.build({"base": [], "broken": [broken], "v1": [faster(toy)]})
    failed = kernels["broken"]
    assert (failed.build, failed.vmlinux, failed.config, failed.vmlinux_sha256) == ("failed", None, None, "")
    assert failed.error.startswith("kvm.c:") and "undefined reference to `mmmu_notifier_retry'" in failed.error
    assert f"sha256 {read_series([broken])[0].sha256}" in failed.log.read_text()
    assert kernels["v1"].build == "ok" and compiled(kernels["v1"]) == ["mmu.o"]


def test_the_first_error_lines_are_the_compilers(toy: Toy) -> None:
    broken = toy.patch("broken", {"kvm.c": swap("return mmu_notifier_retry(seq);", "return nothing + (seq);")})
    error = toy.build({"base": [], "broken": [broken]})["broken"].error.splitlines()
    assert error[0] == "kvm.c:5:16: error: 'nothing' undeclared (first use in this function)"
    assert error[1].strip() == "5 |         return nothing + (seq);"


def test_a_base_that_does_not_compile_is_an_error_with_log_and_command(toy: Toy) -> None:
    (toy.origin / "mmu.c").write_text("#error no\n")
    with pytest.raises(BuildError) as caught:
        toy.build({"base": []})
    assert "mmu.c:1:2: error: #error no" in caught.value.what
    assert caught.value.log and "#error no" in caught.value.log.read_text()
    assert caught.value.hint and "make -C" in caught.value.hint and caught.value.hint.endswith("vmlinux")
    (toy.origin / "mmu.c").write_text("int mmu_notifier_retry(int seq) { return seq; }\n")
    assert toy.build({"base": []})["base"].build == "ok"


def test_a_machine_at_fault_is_not_blamed_on_the_patch(toy: Toy) -> None:
    full = "$(error cannot write: error: No space left on device)"
    patch = toy.patch("full", {"Makefile": swap("src := $(CURDIR)", f"src := $(CURDIR)\n{full}")})
    with pytest.raises(BuildError, match="exited with 2"):
        toy.build({"base": [], "full": [patch]})


def test_a_conflict_is_found_before_anything_is_built(toy: Toy) -> None:
    patch = faster(toy)
    patch.write_text(patch.read_text().replace("-\t\treturn 1;", "-\t\treturn 9;"))
    with pytest.raises(PatchError, match="arm v1 on tree"):
        toy.build({"base": [], "v1": [patch]})
    assert not (toy.cache / "build").exists()


def test_an_option_that_vanishes_names_line_and_dependency(toy: Toy) -> None:
    toy.fragment.write_text("CONFIG_NET=y\n# why\nCONFIG_VHOST=y\nCONFIG_NO_SUCH=y\n# CONFIG_MMU_NOTIFIER is not set\n")
    with pytest.raises(ConfigError) as caught:
        toy.build({"base": []})
    prefix = str(toy.fragment)
    assert set(caught.value.problems) == {
        f"{prefix}:3: expected CONFIG_VHOST=y, found # CONFIG_VHOST is not set: it depends on KVM && !EMBEDDED; "
        "KVM is not set, EMBEDDED is set",
        f"{prefix}:4: expected CONFIG_NO_SUCH=y, found # CONFIG_NO_SUCH is not set: this tree has no such option",
    }


def test_a_patch_that_breaks_a_requested_option_fails_alone(toy: Toy) -> None:
    patch = toy.patch("dep", {"Kconfig": swap("\tdepends on NET\n", "\tdepends on NET && INPUT\n")})
    kernels = toy.build({"base": [], "dep": [patch], "v1": [faster(toy)]})
    assert kernels["dep"].build == "failed" and "INPUT is not set" in kernels["dep"].error
    assert kernels["v1"].build == "ok" and kernels["v1"].config
    assert "CONFIG_KVM=y" in kernels["v1"].config.read_text()


def test_progress_knows_what_to_expect_once_it_was_built(toy: Toy) -> None:
    steps: list[Progress] = []
    toy.build({"base": [], "v1": [faster(toy)]}, steps.append)
    assert [(step.arm, step.done, step.expected) for step in steps] == [
        *(("base", number, None) for number in range(1, 5)),
        *(("v1", number, None) for number in range(1, 3)),
    ]
    assert steps[-1].line == "LD      vmlinux"
    steps.clear()
    (toy.origin / "mmu.c").write_text("int mmu_notifier_retry(int seq) { return seq; }\n")
    toy.build({"base": []}, steps.append)
    assert {step.expected for step in steps} == {4}
