"""build_arms with image: the compressed kernel beside the vmlinux of which it was made, and no other kernel for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from toykernel import Toy, compiled

from orchestrator.errors import BuildError
from orchestrator.kernel.build import IMAGE, BuiltKernel

FASTER = {"mmu.c": lambda text: text.replace("return 1;", "return 2;")}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def image_of(kernel: BuiltKernel) -> bytes:
    assert kernel.vmlinux is not None
    return kernel.vmlinux.with_name(IMAGE).read_bytes()


def test_an_image_is_made_of_each_kernel_and_does_not_change_it(toy: Toy) -> None:
    arms = {"base": [], "v1": [toy.patch("faster", FASTER)]}
    plain = toy.build(arms)
    assert not any(kernel.vmlinux and kernel.vmlinux.with_name(IMAGE).exists() for kernel in plain.values())
    seen = {kernel.arm: compiled(kernel) for kernel in plain.values()}
    imaged = toy.build(arms, image=True)
    for arm, kernel in imaged.items():
        assert (kernel.vmlinux, kernel.vmlinux_sha256) == (plain[arm].vmlinux, plain[arm].vmlinux_sha256)
        assert image_of(kernel).startswith(b"image of\n\x7fELF")
    assert image_of(imaged["base"]) != image_of(imaged["v1"])
    assert compiled(imaged["v1"]) == seen["v1"], "the kernel's own log stays"
    again = toy.build(arms, image=True)
    assert all(kernel.cached for kernel in again.values())


def test_images_from_the_start_and_later_are_the_same(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Toy(tmp_path / "other")
    for one in (toy, other):
        if one is toy:
            one.build({"base": []})
    first, second = (one.build({"base": []}, image=True)["base"] for one in (toy, other))
    assert first.vmlinux_sha256 == second.vmlinux_sha256 and image_of(first) == image_of(second)


def test_an_image_that_cannot_be_made_is_a_failed_stage(toy: Toy) -> None:
    (toy.origin / "no-image").write_text("")
    with pytest.raises(BuildError) as caught:
        toy.build({"base": []}, image=True)
    assert caught.value.hint is not None and caught.value.hint.endswith(" bzImage")
    assert toy.build({"base": []})["base"].build == "ok"
