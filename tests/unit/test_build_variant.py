"""build_arms with extra fragments: the bytes of a build of its own, by way of the objects that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from toykernel import Toy, compiled

from orchestrator.kernel.build import BuiltKernel

# Only kvm.c reads an option, and only its object depends on the config, as with Kbuild's fixdep.
RULE = "$(O)/%.o: $(src)/%.c $(O)/.config\n"
READ = "kvm_config = $(if $(filter kvm,$*),$(shell sed -n 's/^\\(CONFIG_[A-Z]*\\)=y$$/-D\\1/p' $(O)/.config))\n"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path / "toy")


def make_toy(folder: Path) -> Toy:
    folder.mkdir()
    toy = Toy(folder)
    makefile = toy.origin / "Makefile"
    text = makefile.read_text()
    assert RULE in text and "$(KCFLAGS)" in text
    text = text.replace(RULE, f"{READ}$(O)/kvm.o: $(O)/.config\n$(O)/%.o: $(src)/%.c\n")
    makefile.write_text(text.replace("$(KCFLAGS)", "$(kvm_config)"))
    source = toy.origin / "kvm.c"
    source.write_text(source.read_text() + "#ifdef CONFIG_INPUT\nint input;\n#endif\n")
    return toy


def driver(toy: Toy) -> Path:
    path = toy.folder / "driver.config"
    path.write_text("CONFIG_INPUT=y\n")
    return path


def arms(toy: Toy) -> dict[str, list[Path]]:
    return {"base": [], "v1": [toy.patch("faster", {"mmu.c": lambda text: text.replace("return 1;", "return 2;")})]}


def cold(folder: Path) -> dict[str, BuiltKernel]:
    """The same kernels from one config that holds all, in a cache of their own."""
    toy = make_toy(folder)
    toy.fragment.write_text(toy.fragment.read_text() + driver(toy).read_text())
    return toy.build(arms(toy))


def same(one: dict[str, BuiltKernel], other: dict[str, BuiltKernel]) -> bool:
    keys = [(kernel.vmlinux_sha256, kernel.config_sha256, kernel.log.parent.name) for kernel in one.values()]
    assert all(sha256 for sha256, _, _ in keys)
    return keys == [(kernel.vmlinux_sha256, kernel.config_sha256, kernel.log.parent.name) for kernel in other.values()]


def test_extra_options_rebuild_what_reads_them_and_give_the_bytes_of_a_cold_build(toy: Toy, tmp_path: Path) -> None:
    plain = toy.build(arms(toy))
    more = toy.build(arms(toy), extra=[driver(toy)])
    assert compiled(more["base"]) == ["kvm.o"] and compiled(more["v1"]) == ["mmu.o"]
    assert plain["base"].vmlinux_sha256 != more["base"].vmlinux_sha256
    assert same(more, cold(tmp_path / "cold"))
    assert not same(plain, more)
    # Both bases are kept: an arm more costs its own file, with either config.
    again = {"base": [], "slow": [toy.patch("slow", {"mmu.c": lambda text: text.replace("return 1;", "return 3;")})]}
    assert compiled(toy.build(again)["slow"]) == compiled(toy.build(again, extra=[driver(toy)])["slow"]) == ["mmu.o"]


def test_the_plain_kernels_after_the_others_hold_nothing_of_their_arms(toy: Toy, tmp_path: Path) -> None:
    """mmu.o of v1 is newer than the pristine mmu.c when the base is built."""
    more = toy.build(arms(toy), extra=[driver(toy)])
    plain = toy.build(arms(toy))
    assert compiled(plain["base"]) == ["kvm.o"]
    fresh = make_toy(tmp_path / "fresh")
    assert same(plain, fresh.build(arms(fresh)))
    assert same(more, cold(tmp_path / "cold"))


def test_extra_fragments_that_ask_for_nothing_new_make_no_other_kernel(toy: Toy) -> None:
    first = toy.build(arms(toy))
    second = toy.build(arms(toy), extra=[toy.fragment])
    assert same(first, second) and all(kernel.cached for kernel in second.values())
