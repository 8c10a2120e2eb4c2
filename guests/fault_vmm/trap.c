// SPDX-License-Identifier: GPL-2.0
/*
 * The guest left in a way that it never should: by an exception of its own, or by an exit that this VMM does not serve.
 * The measurement is void then, and what is said here is all that anybody will know of it. So it names what a KVM
 * developer asks first: where the guest was, what it touched, and whether the memory that it runs on is still intact.
 *
 * The guest has an IDT for that. Without one an exception ends as KVM_EXIT_SHUTDOWN, of which SVM keeps nothing:
 * shutdown_interception() (svm.c, 5.10) clears the VMCB before it leaves.
 */
#include <sys/ioctl.h>

#include "common.h"
#include "fault_vmm.h"
#include "trap.h"

#define CODE_SELECTOR	0x8
#define GATE_INTERRUPT	0x8e00		/* present, DPL 0, 64-bit interrupt gate */

/* The page at vm->trap_gpa: stubs, then these. */
#define IDT_OFFSET	0x800u
#define GDT_OFFSET	0xc00u

struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint16_t flags;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t zero;
};

/* As vm.c's set_long_mode() loads them: null, code, data. */
static const uint64_t gdt[] = { 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull };

void trap_prepare(struct vm *vm)
{
	uint8_t *page = vm->sys + (vm->trap_gpa - SYS_GPA);
	struct gate *idt = (struct gate *)(page + IDT_OFFSET);
	uint32_t vector;

	_Static_assert(IDT_OFFSET + TRAP_VECTORS * sizeof(*idt) <= GDT_OFFSET, "the IDT runs into the GDT");
	errno = 0;
	die_if(trap_end - trap_start > IDT_OFFSET, "the stubs run into the IDT");
	memcpy(page, trap_start, trap_end - trap_start);
	memcpy(page + GDT_OFFSET, gdt, sizeof(gdt));
	for (vector = 0; vector < TRAP_VECTORS; vector++) {
		uint64_t entry = vm->trap_gpa + vector * TRAP_STUB_BYTES;

		idt[vector] = (struct gate) {
			.offset_low = entry, .offset_middle = entry >> 16, .offset_high = entry >> 32,
			.selector = CODE_SELECTOR, .flags = GATE_INTERRUPT,
		};
	}
}

void trap_set_tables(const struct vm *vm, struct kvm_sregs *sregs)
{
	sregs->idt.base = vm->trap_gpa + IDT_OFFSET;
	sregs->idt.limit = TRAP_VECTORS * sizeof(struct gate) - 1;
	sregs->gdt.base = vm->trap_gpa + GDT_OFFSET;
	sregs->gdt.limit = sizeof(gdt) - 1;
}

/* "guest_write+0x23": a place in the guest's code by the entry before it. */
static const char *place(uint64_t rip, char *text, size_t bytes)
{
	static const struct {
		const char *name;
		const uint8_t *at;
	} entries[] = {
		{ "guest_read", guest_read }, { "guest_write", guest_write }, { "guest_warm", guest_warm },
	};
	size_t i;

	snprintf(text, bytes, "%#llx", (unsigned long long)rip);
	if (rip - SYS_GPA >= (uint64_t)(guest_end - guest_start))
		return text;
	for (i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		uint64_t start = SYS_GPA + (entries[i].at - guest_start);

		if (rip >= start) {
			snprintf(text, bytes, "%s+%#llx", entries[i].name, (unsigned long long)(rip - start));
			break;
		}
	}
	return text;
}

static void say_registers(const struct kvm_regs *regs)
{
	fprintf(stderr, "rax %016llx rbx %016llx rcx %016llx rdx %016llx rsi %016llx rdi %016llx rbp %016llx\n",
		regs->rax, regs->rbx, regs->rcx, regs->rdx, regs->rsi, regs->rdi, regs->rbp);
	fprintf(stderr, "r8 %016llx r9 %016llx r10 %016llx r11 %016llx r12 %016llx r13 %016llx r14 %016llx r15 %016llx\n",
		regs->r8, regs->r9, regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15);
}

/* The guest's own doing is neither: it faults beneath its page tables only, and writes to no page of these two. */
static const char *memory_state(const struct vm *vm)
{
	return layout_intact(vm) ? "its code and page tables are intact, so what runs it is at fault" :
				   "its code or page tables are DAMAGED: a page that is not its own any more?";
}

static const char *exception_name(uint64_t vector)
{
	static const char *const names[] = {
		"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "-", "#TS", "#NP", "#SS", "#GP", "#PF",
		"-", "#MF", "#AC", "#MC", "#XF",
	};

	return vector < sizeof(names) / sizeof(names[0]) ? names[vector] : "-";
}

static _Noreturn void die_of_exception(const struct vm *vm, const struct vcpu *vcpu, const struct kvm_regs *regs)
{
	char where[48];

	die("the guest on vCPU %u took exception %llu (%s) at %s, error code %#llx, cr2 %#llx, %llu accesses before "
	    "the end; %s", vcpu->index, regs->rax, exception_name(regs->rax), place(regs->rcx, where, sizeof(where)),
	    regs->rbx, regs->rdx, regs->rbp, memory_state(vm));
}

/* Of the union in struct kvm_run only what belongs to the exit is said (include/uapi/linux/kvm.h). */
static _Noreturn void die_of_exit(const struct vm *vm, const struct vcpu *vcpu, const struct kvm_regs *regs)
{
	const struct kvm_run *run = vcpu->run;
	const char *memory = memory_state(vm);
	struct kvm_sregs sregs = { 0 };

	switch (run->exit_reason) {
	case KVM_EXIT_SHUTDOWN:
		/* General registers and cr2 outlive what SVM does to the VMCB; rip and segments are those of a reset. */
		ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
		die("the guest on vCPU %u ended in a triple fault: cr2 %#llx, rcx %llu, r10 %#llx; %s", vcpu->index,
		    sregs.cr2, regs->rcx, regs->r10, memory);
	case KVM_EXIT_MMIO:
		die("vCPU %u touched gpa %#llx, where no memslot is; %s", vcpu->index,
		    run->mmio.phys_addr, memory);
	case KVM_EXIT_IO:
		die("vCPU %u used I/O port %#x", vcpu->index, run->io.port);
	case KVM_EXIT_FAIL_ENTRY:
		die("KVM could not enter the guest on vCPU %u: hardware reason %#llx", vcpu->index,
		    run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR:
		die("KVM gave up vCPU %u: internal error, suberror %u", vcpu->index, run->internal.suberror);
	case KVM_EXIT_UNKNOWN:
		die("vCPU %u left the guest for a hardware reason that KVM does not know: %#llx", vcpu->index,
		    run->hw.hardware_exit_reason);
	default:
		die("vCPU %u left the guest for KVM_EXIT reason %u", vcpu->index, run->exit_reason);
	}
}

void die_of_unexpected_exit(const struct vm *vm, const struct vcpu *vcpu)
{
	struct kvm_regs regs = { 0 };

	ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	errno = 0;
	say_registers(&regs);
	if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == TRAP_PORT)
		die_of_exception(vm, vcpu, &regs);
	die_of_exit(vm, vcpu, &regs);
}
