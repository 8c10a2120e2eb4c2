// SPDX-License-Identifier: GPL-2.0
/*
 * The guest's memory map. The system memslot holds, from gpa 0:
 *
 *	code | PML4 | PDPT | PD ... | PT ... | exceptions | per vCPU: stack, page order, samples
 *
 * gva == gpa everywhere. The system memslot is mapped by 2 MiB guest pages; the faulting range by 4 KiB or 2 MiB ones
 * (--page), which under shadow paging decides how large a page KVM may shadow, and under TDP does not matter to KVM.
 * Accessed and dirty bits are preset: the guest's own page walk must not be the thing that faults.
 */
#include <sys/mman.h>

#include "common.h"
#include "fault_vmm.h"

#define PTE_FLAGS	(0x1 | 0x2 | 0x20 | 0x40)	/* present, writable, accessed, dirty */
#define PTE_HUGE	0x80
#define ENTRIES		512ull
#define CODE_BYTES	PAGE_BYTES
#define PML4_GPA	(SYS_GPA + CODE_BYTES)
#define GIB		(1ull << 30)

uint64_t layout_pml4_gpa(void)
{
	return PML4_GPA;
}

static uint64_t mapped_end(const struct vm *vm)
{
	return MEM_GPA + ALIGN_UP(vm->params->mem_bytes, HUGE_BYTES);
}

static uint64_t nr_pds(const struct vm *vm)
{
	return ALIGN_UP(mapped_end(vm), GIB) / GIB;
}

static uint64_t nr_pts(const struct vm *vm)
{
	return vm->params->guest_huge ? 0 : ALIGN_UP(vm->params->mem_bytes, HUGE_BYTES) / HUGE_BYTES;
}

/* Accesses of one vCPU in one round: the range is dealt out in contiguous shares. */
static uint64_t share_of(const struct params *params, uint32_t vcpu)
{
	uint64_t pages = params->mem_bytes / params->stride_bytes;

	return pages / params->vcpus + (vcpu < pages % params->vcpus);
}

static uint64_t tables_bytes(const struct vm *vm)
{
	return CODE_BYTES + (2 + nr_pds(vm) + nr_pts(vm)) * PAGE_BYTES;
}

static uint64_t *table(uint8_t *sys, uint64_t gpa)
{
	return (uint64_t *)(sys + (gpa - SYS_GPA));
}

/* Into memory at ``sys``, which is the system memslot's or a copy of it. */
static void build_page_tables(const struct vm *vm, uint8_t *sys)
{
	uint64_t pdpt_gpa = PML4_GPA + PAGE_BYTES;
	uint64_t pd_gpa = pdpt_gpa + PAGE_BYTES;
	uint64_t pt_gpa = pd_gpa + nr_pds(vm) * PAGE_BYTES;
	uint64_t *pd = table(sys, pd_gpa);
	uint64_t i, gpa;

	table(sys, PML4_GPA)[0] = pdpt_gpa | PTE_FLAGS;
	for (i = 0; i < nr_pds(vm); i++)
		table(sys, pdpt_gpa)[i] = (pd_gpa + i * PAGE_BYTES) | PTE_FLAGS;
	for (gpa = SYS_GPA; gpa < SYS_GPA + vm->sys_bytes; gpa += HUGE_BYTES)
		pd[gpa / HUGE_BYTES] = gpa | PTE_FLAGS | PTE_HUGE;
	for (gpa = MEM_GPA; gpa < mapped_end(vm); gpa += HUGE_BYTES) {
		uint64_t *pt = table(sys, pt_gpa);

		if (vm->params->guest_huge) {
			pd[gpa / HUGE_BYTES] = gpa | PTE_FLAGS | PTE_HUGE;
			continue;
		}
		for (i = 0; i < ENTRIES; i++)
			pt[i] = (gpa + i * PAGE_BYTES) | PTE_FLAGS;
		pd[gpa / HUGE_BYTES] = pt_gpa | PTE_FLAGS;
		pt_gpa += PAGE_BYTES;
	}
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Sequential, or a Fisher-Yates shuffle of the share by the seed. */
static void fill_order(const struct params *params, struct vcpu *vcpu, uint64_t first)
{
	uint64_t state = (params->seed + 1) * 0x9e3779b97f4a7c15ull + vcpu->index;
	uint64_t i, j;

	for (i = 0; i < vcpu->nr_pages; i++)
		vcpu->order[i] = first + i;
	for (i = vcpu->nr_pages; params->random && i > 1; i--) {
		uint32_t kept = vcpu->order[i - 1];

		j = next_random(&state) % i;
		vcpu->order[i - 1] = vcpu->order[j];
		vcpu->order[j] = kept;
	}
}

static void *map_guest(uint64_t hva, uint64_t bytes, int flags)
{
	void *area = mmap((void *)hva, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE | flags, -1, 0);

	die_if(area != (void *)hva, "mmap of %llu bytes of guest memory", (unsigned long long)bytes);
	/* A huge host page would turn 512 faults into one. */
	madvise(area, bytes, MADV_NOHUGEPAGE);
	/* A fork (the other-process storm) must not make these pages copy-on-write. */
	die_if(madvise(area, bytes, MADV_DONTFORK), "madvise(MADV_DONTFORK) of guest memory");
	return area;
}

void layout_prepare(struct vm *vm)
{
	const struct params *params = vm->params;
	uint64_t bytes = tables_bytes(vm), first = 0, offset;
	uint32_t i;

	vm->trap_gpa = SYS_GPA + bytes;
	bytes += PAGE_BYTES;
	for (i = 0; i < params->vcpus; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];

		vcpu->index = i;
		bytes += PAGE_BYTES;
		vcpu->task.stack_gva = SYS_GPA + bytes;	/* grows downwards */
		vcpu->nr_pages = share_of(params, i);
		vcpu->task.order_gva = SYS_GPA + bytes;
		bytes += ALIGN_UP(vcpu->nr_pages * sizeof(uint32_t), PAGE_BYTES);
		vcpu->task.samples_gva = SYS_GPA + bytes;
		bytes += ALIGN_UP(vcpu->nr_pages * params->rounds * sizeof(struct rec_fault), PAGE_BYTES);
	}
	vm->sys_bytes = ALIGN_UP(bytes, HUGE_BYTES);
	die_if(SYS_GPA + vm->sys_bytes > SYS_LIMIT, "the samples of %u rounds need %llu MiB, there is room for %llu",
	       params->rounds, (unsigned long long)(bytes >> 20), (unsigned long long)(SYS_LIMIT >> 20));

	vm->sys = map_guest(SYS_HVA, vm->sys_bytes, 0);
	for (offset = 0; offset < bytes; offset += PAGE_BYTES)
		*(volatile uint8_t *)(vm->sys + offset) = 0;
	vm->mem = map_guest(MEM_HVA, vm->slot_bytes, 0);

	memcpy(vm->sys, guest_start, guest_end - guest_start);
	build_page_tables(vm, vm->sys);
	trap_prepare(vm);
	for (i = 0; i < params->vcpus; i++) {
		struct vcpu *vcpu = &vm->vcpus[i];

		vcpu->order = (uint32_t *)(vm->sys + (vcpu->task.order_gva - SYS_GPA));
		vcpu->samples = (struct rec_fault *)(vm->sys + (vcpu->task.samples_gva - SYS_GPA));
		fill_order(params, vcpu, first);
		first += vcpu->nr_pages;
	}
}

/* The guest writes neither, and accessed and dirty bits are preset: both must be what they were at the start. */
bool layout_intact(const struct vm *vm)
{
	uint64_t bytes = tables_bytes(vm);
	uint8_t *expected = calloc(1, bytes);
	bool intact;

	die_if(!expected, "calloc of %llu bytes", (unsigned long long)bytes);
	memcpy(expected, guest_start, guest_end - guest_start);
	build_page_tables(vm, expected);
	intact = !memcmp(expected, vm->sys, guest_end - guest_start) &&
		 !memcmp(expected + CODE_BYTES, vm->sys + CODE_BYTES, bytes - CODE_BYTES);
	free(expected);
	return intact;
}
