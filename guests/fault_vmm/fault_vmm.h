/* SPDX-License-Identifier: GPL-2.0 */
/* fault_vmm: a small VMM whose flat guest does one thing, fault on memory, and times each fault. */
#ifndef ORCH_FAULT_VMM_H
#define ORCH_FAULT_VMM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "recording.h"
#include "storm.h"

#define MAX_VCPUS	64
#define MAX_COUNTERS	160

/* Where the guest's memory stands: gpa == gva in the guest, hva == gpa modulo 2 MiB in the VMM. */
#define SYS_GPA		0x0ull			/* code, page tables, page order, samples */
#define SYS_HVA		0x100000000000ull
#define MEM_GPA		0x100000000ull		/* what faults, and an adjacent storm behind it */
#define SYS_LIMIT	0xc0000000ull		/* below the APIC page and KVM's own TSS page, just under 4 GiB */
#define MEM_HVA		0x110000000000ull
#define STORM_HVA	0x120000000000ull	/* the memslot of a disjoint storm; its gpa follows the other's */

#define DONE_PORT	0x10			/* OUT here: the guest has finished its round */

enum backing {
	BACKING_ABSENT,		/* rounds start with no host page: the fault allocates and zeroes one */
	BACKING_PRESENT,	/* rounds start with host pages mapped, but no SPTE: KVM's own path alone */
};

struct params {
	char arm[32];
	char cell[96];
	const char *out;
	uint64_t seed;
	uint32_t vcpus;
	uint64_t mem_bytes;
	uint32_t stride_bytes;
	uint32_t rounds;
	bool write;
	bool random;
	bool guest_huge;
	enum backing backing;
	struct storm_params storm;
	uint32_t start_delay_us;
};

/* What the guest is told, in registers: see guest.S for which. */
struct guest_task {
	uint64_t order_gva;	/* u32 page indices, one an access */
	uint64_t samples_gva;	/* struct rec_fault */
	uint64_t stack_gva;	/* its end; only exceptions use it */
	uint64_t count;
};

struct vcpu {
	uint32_t index;
	int fd;
	struct kvm_run *run;
	uint64_t nr_pages;	/* accesses a round */
	uint32_t *order;
	struct rec_fault *samples;
	struct guest_task task;
	int64_t tsc_offset;
};

struct vm {
	const struct params *params;
	int kvm_fd;
	int vm_fd;
	int creator;		/* the thread that made the VM, 0 for the process's first: debugfs names the VM by it */
	uint8_t *sys;
	uint64_t sys_bytes;
	uint8_t *mem;
	uint64_t trap_gpa;	/* the page with the guest's IDT */
	uint64_t slot_bytes;	/* mem_bytes, and an adjacent storm's range behind them */
	uint64_t tsc_hz;
	bool tdp;
	struct vcpu vcpus[MAX_VCPUS];
};

/* vm.c: everything before the first KVM_RUN. */
void vm_create(struct vm *vm, const struct params *params);
void *vm_storm_range(const struct vm *vm);
void vcpu_warm(struct vm *vm, struct vcpu *vcpu);
void vcpu_round(struct vm *vm, struct vcpu *vcpu, uint32_t round);

/* layout.c: where the tables of the guest lie in its memory, and what is in them. */
void layout_prepare(struct vm *vm);
uint64_t layout_pml4_gpa(void);
bool layout_intact(const struct vm *vm);

/* trap.c: what the guest does when something beneath it fails, and what is said of it. */
void trap_prepare(struct vm *vm);
void trap_set_tables(const struct vm *vm, struct kvm_sregs *sregs);
_Noreturn void die_of_unexpected_exit(const struct vm *vm, const struct vcpu *vcpu);

/* counters.c: KVM's statistics of this VM. Returns how many there are, 0 (and says so) where the kernel offers none. */
uint32_t counters_read(const struct vm *vm, struct rec_counter *counters, bool after);
/* @id is the vCPU's name at KVM, which need not be its index. Ends the program if this kernel does not tell. */
int64_t tsc_offset_read(const struct vm *vm, const struct vcpu *vcpu, unsigned long id);

/* rounds.c: the measurement itself. */
void rounds_run(struct vm *vm, struct storm *storm, uint64_t *start_tsc, uint64_t *end_tsc,
		struct rec_counter *counters, uint32_t *nr_counters);

/* record.c */
void record_write(const struct vm *vm, const struct storm *storm, uint64_t start_tsc, uint64_t end_tsc,
		  const struct rec_counter *counters, uint32_t nr_counters);

/* guest.S */
extern const uint8_t guest_start[], guest_end[];
extern const uint8_t guest_warm[], guest_write[], guest_read[];

/* trap_stubs.S */
extern const uint8_t trap_start[], trap_end[];

#endif
