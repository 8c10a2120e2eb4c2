"""Which machines of its lab file an experiment runs on, and whether they fit it; before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.lab.reader import load
from orchestrator.lab.types import Lab, LabHost


def fragments(chosen: Experiment) -> tuple[Path, ...]:
    """The kernel config fragments that its lab's machines need besides the experiment's own; none without a lab.

    Raises :class:`~orchestrator.errors.ConfigError` for the lab file.
    """
    if chosen.target.lab is None or not chosen.builds_kernels:
        return ()
    return tuple(path for path in load(chosen.target.lab).fragments if path not in chosen.kernel.fragments)


def needs_image(chosen: Experiment) -> bool:
    """Whether one of the machines boots by a boot loader, which takes no ELF file."""
    return chosen.target.lab is not None and any(
        host.boot == "grub" for host in named(load(chosen.target.lab), chosen.target.hosts)
    )


def machines(chosen: Experiment) -> tuple[LabHost, ...]:
    """The machines that the experiment runs on; none without a lab. Raises :class:`UserError` if they do not fit."""
    if chosen.target.lab is None:
        return ()
    hosts = named(load(chosen.target.lab), chosen.target.hosts)
    builds = chosen.builds_kernels
    for host in hosts:
        if builds != (host.boot != "none"):
            does = "boots no kernel (boot: none), and the experiment builds one"
            does_not = f"boots a kernel (boot: {host.boot}), and the experiment builds none"
            raise UserError(f"{host.name} {does if builds else does_not}", hint=f"choose other hosts in {chosen.path}")
        _check_cpus(chosen, host)
    return hosts


def named(lab: Lab, names: Sequence[str]) -> tuple[LabHost, ...]:
    """The machines of these names, all without any. Raises :class:`UserError` for a name that the lab does not have."""
    known = {host.name: host for host in lab.hosts}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{lab.path} has no host {name}{meant}", hint=f"one of: {', '.join(known)}")
    return tuple(known[name] for name in names) or lab.hosts


def _check_cpus(chosen: Experiment, host: LabHost) -> None:
    """As for QEMU's CPUs in experiment/crosscheck.py; without ``cpus`` the machine itself will say."""
    if not host.cpus:
        return
    for cell in chosen.cells:
        other = cell.storm is not None and cell.storm.cpu == "other"
        need = cell.guest.vcpus + (1 if other else 0)
        if need > len(host.cpus):
            raise UserError(
                f"cell {cell.name} needs {need} CPUs, and {host.name} has {len(host.cpus)} for it",
                hint=f"list more cpus of {host.name} in {chosen.target.lab}",
            )
