// SPDX-License-Identifier: GPL-2.0
/* The VM: KVM's file descriptors, memslots, and vCPUs that start in 64-bit mode. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "fault_vmm.h"

#define CR0_PE		0x1ull
#define CR0_NE		0x20ull
#define CR0_WP		0x10000ull
#define CR0_PG		0x80000000ull
#define CR4_PAE		0x20ull
#define EFER_LME	0x100ull
#define EFER_LMA	0x400ull

#define MAX_CPUID	256

/* Whether the host's KVM uses two-dimensional paging; decides which fault path is measured. */
static bool read_tdp(void)
{
	static const char *const files[] = {
		"/sys/module/kvm_amd/parameters/npt",
		"/sys/module/kvm_intel/parameters/ept",
	};
	char value = 0;
	size_t i;

	for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		FILE *file = fopen(files[i], "r");

		if (!file)
			continue;
		value = fgetc(file);
		fclose(file);
		return value == 'Y' || value == '1';
	}
	/* A vendor module without either switch (kvm_pvm, which has no hardware to ask) can only shadow. */
	errno = 0;
	die_if(access("/sys/module/kvm", F_OK), "no KVM in /sys/module: cannot tell TDP from shadow paging");
	return false;
}

static void add_slot(struct vm *vm, uint32_t slot, uint64_t gpa, void *hva, uint64_t bytes)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uint64_t)hva,
	};

	die_if(ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region), "memslot %u of %llu bytes at gpa %#llx", slot,
	       (unsigned long long)bytes, (unsigned long long)gpa);
}

static void set_cpuid(struct vm *vm, struct vcpu *vcpu)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[MAX_CPUID];
	} cpuid;

	cpuid.head.nent = MAX_CPUID;
	die_if(ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	die_if(ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static void set_long_mode(const struct vm *vm, struct vcpu *vcpu)
{
	struct kvm_segment code = { .base = 0, .limit = ~0u, .selector = 0x8, .type = 0xb, .present = 1, .s = 1,
				    .l = 1, .g = 1 };
	struct kvm_segment data = { .base = 0, .limit = ~0u, .selector = 0x10, .type = 0x3, .present = 1, .s = 1,
				    .db = 1, .g = 1 };
	struct kvm_sregs sregs;

	die_if(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = CR0_PE | CR0_NE | CR0_WP | CR0_PG;
	sregs.cr3 = layout_pml4_gpa();
	sregs.cr4 = CR4_PAE;
	sregs.efer = EFER_LME | EFER_LMA;
	trap_set_tables(vm, &sregs);
	die_if(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

static void create_vcpu(struct vm *vm, struct vcpu *vcpu, int run_bytes)
{
	vcpu->fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, vcpu->index);
	die_if(vcpu->fd < 0, "KVM_CREATE_VCPU %u", vcpu->index);
	vcpu->run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, vcpu->fd, 0);
	die_if(vcpu->run == MAP_FAILED, "mmap of struct kvm_run");
	set_cpuid(vm, vcpu);
	set_long_mode(vm, vcpu);
}

static bool storm_in_slot_behind_mem(const struct params *params)
{
	return params->storm.placement == STORM_ADJACENT;
}

void *vm_storm_range(const struct vm *vm)
{
	switch (vm->params->storm.placement) {
	case STORM_DISJOINT:
		return (void *)STORM_HVA;
	case STORM_ADJACENT:
		return vm->mem + vm->params->mem_bytes;
	case STORM_OVERLAP:
		return vm->mem;
	default:
		return NULL;
	}
}

static void add_storm_slot(struct vm *vm)
{
	uint64_t bytes = ALIGN_UP(vm->params->storm.bytes * vm->params->storm.threads, HUGE_BYTES);
	void *area = mmap((void *)STORM_HVA, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);

	die_if(area != (void *)STORM_HVA, "mmap of the storm's memslot");
	madvise(area, bytes, MADV_NOHUGEPAGE);
	add_slot(vm, 2, ALIGN_UP(MEM_GPA + vm->slot_bytes, HUGE_BYTES), area, bytes);
}

void vm_create(struct vm *vm, const struct params *params)
{
	int run_bytes, khz;
	uint32_t i;

	vm->params = params;
	vm->slot_bytes = params->mem_bytes;
	if (storm_in_slot_behind_mem(params))
		vm->slot_bytes += params->storm.bytes * params->storm.threads;
	vm->tdp = read_tdp();
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	die_if(vm->kvm_fd < 0, "open /dev/kvm");
	vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	die_if(vm->vm_fd < 0, "KVM_CREATE_VM");
	/* Intel without unrestricted guest needs this; harmless elsewhere. Above every gpa that we use below 4 GiB. */
	die_if(ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul), "KVM_SET_TSS_ADDR");

	layout_prepare(vm);
	add_slot(vm, 0, SYS_GPA, vm->sys, vm->sys_bytes);
	add_slot(vm, 1, MEM_GPA, vm->mem, vm->slot_bytes);
	if (params->storm.placement == STORM_DISJOINT)
		add_storm_slot(vm);

	run_bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	die_if(run_bytes < 0, "KVM_GET_VCPU_MMAP_SIZE");
	for (i = 0; i < params->vcpus; i++)
		create_vcpu(vm, &vm->vcpus[i], run_bytes);
	khz = ioctl(vm->vcpus[0].fd, KVM_GET_TSC_KHZ, 0);
	die_if(khz <= 0, "KVM_GET_TSC_KHZ");
	vm->tsc_hz = (uint64_t)khz * 1000;
}

/* Between an overlapping storm's munmap and its mmap, or with its range moved away, a gpa may lead nowhere: EFAULT. */
static bool storm_makes_holes(const struct vm *vm)
{
	const struct storm_params *storm = &vm->params->storm;

	return storm->placement == STORM_OVERLAP && (storm->op == REC_OP_MUNMAP || storm->op == REC_OP_MREMAP);
}

/*
 * Some KVMs hand an access to a hole to the emulator and leave with an MMIO exit instead of EFAULT. Entering again
 * completes the access; it is a hole of an overlapping storm's making or else the measurement is broken.
 */
static bool is_storm_hole(const struct vm *vm, const struct vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_MMIO && storm_makes_holes(vm) &&
	       run->mmio.phys_addr >= MEM_GPA && run->mmio.phys_addr < MEM_GPA + vm->params->mem_bytes;
}

static void run_until_done(struct vm *vm, struct vcpu *vcpu)
{
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0)) {
			die_if(errno != EINTR && !(errno == EFAULT && storm_makes_holes(vm)), "KVM_RUN of vCPU %u",
			       vcpu->index);
			if (errno == EFAULT)
				sched_yield();	/* let the storm fill the hole, then fault again */
			errno = 0;
			continue;
		}
		if (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == DONE_PORT)
			return;
		if (is_storm_hole(vm, vcpu))
			continue;
		die_of_unexpected_exit(vm, vcpu);
	}
}

static void enter(struct vm *vm, struct vcpu *vcpu, const uint8_t *entry, struct kvm_regs regs)
{
	regs.rip = SYS_GPA + (entry - guest_start);
	regs.rflags = 0x2;	/* bit 1 is always set; interrupts are off */
	regs.rsp = vcpu->task.stack_gva;
	die_if(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS of vCPU %u", vcpu->index);
	run_until_done(vm, vcpu);
}

/*
 * Map the system memslot's SPTEs by writing to every page of it, so that no later exit is for its sake. Under shadow
 * paging the page tables are left alone: KVM write-protects what it shadows, and walks them by hva anyway.
 */
void vcpu_warm(struct vm *vm, struct vcpu *vcpu)
{
	uint64_t from = vm->tdp ? SYS_GPA : vm->vcpus[0].task.order_gva;
	struct kvm_regs regs = { .rbx = from, .rcx = (SYS_GPA + vm->sys_bytes - from) / PAGE_BYTES };

	enter(vm, vcpu, guest_warm, regs);
}

void vcpu_round(struct vm *vm, struct vcpu *vcpu, uint32_t round)
{
	struct kvm_regs regs = {
		.rsi = vcpu->task.order_gva,
		.rdi = vcpu->task.samples_gva + round * vcpu->nr_pages * sizeof(struct rec_fault),
		.rcx = vcpu->nr_pages,
		.rbx = MEM_GPA,
		.r12 = vm->params->stride_bytes,
		.r14 = (1ull << REC_LATENCY_BITS) - 1,
	};

	enter(vm, vcpu, vm->params->write ? guest_write : guest_read, regs);
}
