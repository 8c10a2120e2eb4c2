"""Samples of one boot in, its summary out: latencies, VM exits, retries."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from orchestrator.analysis.model import Latency
from orchestrator.analysis.tally import Counts, pick
from orchestrator.recording import Recording

# Ascending, as pick() wants their ranks.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}

# Exits that have a counter of their own and are no page fault (names as in KVM's debugfs, Linux 5.10,
# arch/x86/kvm/x86.c: debugfs_entries). Where each is counted:
#   io_exits      io_interception()/handle_io(): the flat guest's reports
#   irq_exits     intr_interception()/handle_external_interrupt(): a host interrupt, the timer tick above all
#   irq_window, nmi_window   interrupt_window_interception(), iret_interception()
#   halt_exits    kvm_vcpu_halt()
#   hypercalls    kvm_emulate_hypercall()
#   invlpg        kvm_mmu_invlpg(), intercepted under shadow paging only
#   pf_guest      kvm_inject_page_fault(): a fault that the guest's own page tables ask for (shadow paging)
#   insn_emulation   x86_decode_emulated_instruction(): MMIO, writes to shadowed page tables. It contains
#                    mmio_exits (x86_emulate_instruction()), which is therefore used only where it is missing.
# request_irq and signal_exits are returns to the VMM without a VM exit of their own: not taken off.
NOT_FAULTS = ("io_exits", "irq_exits", "irq_window", "nmi_window", "halt_exits", "hypercalls", "invlpg", "pf_guest")

# How far below zero the difference may be and still mean "none": the two readings of the counters are not one
# instant, and a page-table page under shadow paging is counted in pf_fixed and insn_emulation.
SLACK_FAULTS, SLACK_SHARE = 16, 0.001

LINUX_GUEST = "guest_minflt"  # a counter of guests/fault_bench that every recording of a Linux guest has

PREFETCH = 8  # PTE_PREFETCH_NUM, arch/x86/kvm/mmu/mmu.c: so many SPTEs may one fault install.


def summarise(counted: Iterable[Counts], faults: int, cycles: int, to_ns: float) -> Latency:
    """Latency of one boot: ``counted`` for :func:`pick`, in cycles; how many faults (at least one), the sum of
    their cycles, nanoseconds a cycle."""
    ranks = [max(0, int(np.ceil(quantile * faults - 1e-9)) - 1) for quantile in QUANTILES.values()]
    *quantiles, slowest = pick(np.array([*ranks, faults - 1]), counted)
    return Latency(
        mean=cycles / faults * to_ns,
        max=float(slowest) * to_ns,
        **{name: float(value) * to_ns for name, value in zip(QUANTILES, quantiles, strict=True)},
    )


def exits(recording: Recording) -> int | None:
    """VM exits during the measured rounds: ``exits``, which vcpu_enter_guest() (5.10) counts once an entry.

    None where the kernel's statistics could not be read, or do not see this guest's faults.
    """
    return recording.counter("exits") if _sees_faults(recording) else None


def retries(recording: Recording) -> int | None:
    """Page-fault exits that installed nothing, so that the guest had to fault again; None without the counters.

    Linux 5.10 has no counter for them. Each VM exit is counted once (``exits``: vcpu_enter_guest()), each fault that
    installed its SPTE once (``pf_fixed``: __direct_map(), FNAME(fetch)(), tdp_mmu_map_handle_target_level()). When
    mmu_notifier_retry() holds, direct_page_fault() and FNAME(page_fault)() leave with RET_PF_RETRY before they reach
    these, so a retry is what is left over:

        retries = exits - pf_fixed - (exits of another kind, :data:`NOT_FAULTS`)

    Also left over, and so counted here: faults that found the SPTE there (RET_PF_SPURIOUS: another vCPU was faster;
    the default TDP MMU of 5.10 is off, with it on they are in pf_fixed), faults mended by fast_page_fault(), and
    exits without a counter (CPUID, MSR, CR and DR accesses), which the flat guest does not cause while it measures.
    The quiet cell is the control: it must show none.

    A Linux guest also programs its timer while it measures, by MSR writes that nothing counts: one for each interrupt
    that it takes (``irq_injections``: its ticks are nearly all of them; of an interrupt that another vCPU sends, the
    write that sends it). So many are taken off there. What its kernel and other programs fault in besides is in
    ``exits`` and ``pf_fixed`` alike, and their retries are counted here as well. Under shadow paging every switch of
    its page tables is an exit without a count, too: None. Traced boots are the proof: the exits by reason, and the
    check ``attribution``, which holds this number against the attempts by trace.

    Since 5.19 (1075d41efdfe, "Expand and clean up page fault stats") the kernel counts faults themselves:
    ``pf_taken``, less those ``pf_fixed``, emulated, spurious, or passed on to the guest.

    A difference slightly below zero is none (see :data:`SLACK_FAULTS`); one far below says that this kernel counts
    otherwise, and is None.
    """
    fixed = recording.counter("pf_fixed")
    if fixed is None or not _sees_faults(recording):
        return None
    tried = _attempts_counted(recording)
    if tried is None:
        tried = _attempts_left_over(recording)
    if tried is None or tried - fixed < -max(SLACK_FAULTS, int(recording.nr_faults * SLACK_SHARE)):
        return None
    return max(0, tried - fixed)


def _attempts_counted(recording: Recording) -> int | None:
    """Faults that were to be handled, by the kernel's own count of them; None where it has none."""
    taken = recording.counter("pf_taken")
    if taken is None:
        return None
    return taken - sum(_moved(recording, name) for name in ("pf_emulate", "pf_spurious", "pf_guest"))


def _attempts_left_over(recording: Recording) -> int | None:
    """The same from all VM exits, less those of another kind; None where some of these have no counter."""
    every = recording.counter("exits")
    linux = recording.counter(LINUX_GUEST) is not None
    if every is None or (linux and not recording.header.tdp):
        return None
    emulated = recording.counter("insn_emulation")
    others = sum(_moved(recording, name) for name in NOT_FAULTS)
    others += emulated if emulated is not None else _moved(recording, "mmio_exits")
    return every - others - (_moved(recording, "irq_injections") if linux else 0)


def _sees_faults(recording: Recording) -> bool:
    """Whether KVM's statistics were read and account for the guest's faults.

    They do not under a KVM that maps pages elsewhere (kvm_pvm on some machines: ``pf_fixed`` stays 0), and 0 retries
    would then be a lie. Half of what is possible at best, one fault for :data:`PREFETCH` pages, is asked for.
    """
    fixed = recording.counter("pf_fixed")
    return recording.header.has_counters and fixed is not None and fixed * 2 * PREFETCH >= recording.nr_faults


def _moved(recording: Recording, name: str) -> int:
    """How far a counter moved; 0 for one that this kernel does not have, since nothing is then counted under it."""
    return recording.counter(name) or 0
