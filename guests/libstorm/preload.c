// SPDX-License-Identifier: GPL-2.0
/*
 * What the VMM says to KVM, seen on its way through libc's ioctl().
 *
 * A VMM that is linked statically, or makes the system call itself, cannot be seen; session.c says so when the guest
 * talks and no memslot is known.
 */
#define _GNU_SOURCE
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "libstorm.h"

#define MAX_SLOTS	512
/* Since Linux 6.8; its struct begins as that of KVM_SET_USER_MEMORY_REGION does. */
#define SET_REGION2	_IOC(_IOC_WRITE, KVMIO, 0x49, 160)

struct slot {
	uint32_t id;
	uint64_t gpa;
	uint64_t bytes;
	uint8_t *hva;
};

struct vm guest_vm;

static uint32_t nr_vcpus;
static unsigned long ids[MAX_VCPUS];	/* of the vCPUs, as KVM has them; an x86 VMM may number by APIC id, with gaps */
static int stats_fds[MAX_VCPUS];	/* of the vCPUs; not above 0: this kernel has none */
static _Atomic bool kvm_called;
static char *preload;			/* the value of LD_PRELOAD, in the environment itself */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot slots[MAX_SLOTS];
static uint32_t nr_slots;
static _Atomic uint32_t nr_running;
static struct mailbox *_Atomic watched;
static sem_t changed;
/* Of the thread that runs a vCPU. The library is there from the program's start, so this is one fixed place. */
static __thread struct vcpu *self __attribute__((tls_model("initial-exec")));
static __thread bool offset_known __attribute__((tls_model("initial-exec")));

/* To be called while there is but one thread. */
void preload_begin(void)
{
	preload = getenv("LD_PRELOAD");
}

bool kvm_known(void)
{
	return kvm_called;
}

bool guest_known(void)
{
	return nr_slots > 0;
}

uint32_t guest_running(void)
{
	return atomic_load(&nr_running);
}

uint8_t *guest_hva(uint64_t gpa, uint64_t bytes)
{
	uint8_t *hva = NULL;
	uint32_t i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < nr_slots && !hva; i++) {
		if (gpa >= slots[i].gpa && gpa - slots[i].gpa < slots[i].bytes &&
		    bytes <= slots[i].bytes - (gpa - slots[i].gpa))
			hva = slots[i].hva + (gpa - slots[i].gpa);
	}
	pthread_mutex_unlock(&lock);
	return hva;
}

void guest_no_huge_pages(void)
{
	uint32_t i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < nr_slots; i++)
		madvise(slots[i].hva, slots[i].bytes, MADV_NOHUGEPAGE);
	pthread_mutex_unlock(&lock);
	errno = 0;
}

void guest_watch(struct mailbox *box)
{
	sem_init(&changed, 0, 0);
	atomic_store(&watched, box);
}

void guest_wait(void)
{
	while (sem_wait(&changed))
		;
	errno = 0;
}

static void learn_slot(const struct kvm_userspace_memory_region *region)
{
	uint32_t i;

	if (region->slot >> 16)
		return;		/* the address space of system management mode: the same memory once more */
	for (i = 0; i < nr_slots && slots[i].id != region->slot; i++)
		;
	if (!region->memory_size) {
		if (i < nr_slots)
			slots[i] = slots[--nr_slots];
		return;
	}
	errno = 0;
	die_if(i == MAX_SLOTS, "the VMM uses more than %d memslots", MAX_SLOTS);
	slots[i] = (struct slot) { region->slot, region->guest_phys_addr, region->memory_size,
				   (uint8_t *)region->userspace_addr };
	if (i == nr_slots)
		nr_slots++;
}

/* A VM that never runs, made to ask KVM for its extensions, gives way to the next one. */
static void learn_vm(int fd)
{
	if (atomic_load(&nr_running))
		return;
	memset(&guest_vm, 0, sizeof(guest_vm));
	guest_vm.vm_fd = fd;
	guest_vm.creator = gettid();
	nr_slots = 0;
	nr_vcpus = 0;
	/* What the VMM starts from here on is no VMM. A byte, and no unsetenv(): other threads may read the environment. */
	if (preload)
		*preload = 0;
}

/* Counted in the order of their making, which is that of the guest's CPUs. */
static void learn_vcpu(unsigned long id, int fd)
{
	errno = 0;
	die_if(nr_vcpus == MAX_VCPUS, "the VMM makes more than %d vCPUs", MAX_VCPUS);
	ids[nr_vcpus] = id;
	guest_vm.vcpus[nr_vcpus].index = nr_vcpus;
	guest_vm.vcpus[nr_vcpus].fd = fd;
	nr_vcpus++;
}

static void learn(int fd, unsigned long request, void *arg, int ret)
{
	int error = errno;

	if (_IOC_TYPE(request) != KVMIO)
		return;
	kvm_called = true;
	if (ret < 0)
		return;
	pthread_mutex_lock(&lock);
	if (request == KVM_CREATE_VM)
		learn_vm(ret);
	else if (fd == guest_vm.vm_fd && (request == KVM_SET_USER_MEMORY_REGION || request == SET_REGION2))
		learn_slot(arg);
	else if (fd == guest_vm.vm_fd && request == KVM_CREATE_VCPU)
		learn_vcpu((unsigned long)arg, ret);
	pthread_mutex_unlock(&lock);
	errno = error;
}

static struct vcpu *find_vcpu(int fd)
{
	uint32_t i;

	for (i = 0; i < MAX_VCPUS; i++) {
		if (fd && guest_vm.vcpus[i].fd == fd)
			return &guest_vm.vcpus[i];
	}
	return NULL;
}

/*
 * The first KVM_RUN of a vCPU, in its own thread. What is asked of the vCPU's descriptor is asked now: once it runs,
 * KVM holds its mutex until it leaves the guest for the VMM's sake, which may be never (kvm_vcpu_ioctl() in
 * virt/kvm/kvm_main.c).
 */
static void first_run(int fd)
{
	struct vcpu *vcpu = find_vcpu(fd);
	int khz;

	errno = 0;
	die_if(!vcpu, "the VMM runs a vCPU of which KVM_CREATE_VCPU was not seen");
	cpus_pin(vcpu->index % cpus_count(), "a vCPU");
	khz = syscall(SYS_ioctl, fd, KVM_GET_TSC_KHZ, 0);
	die_if(khz <= 0, "KVM_GET_TSC_KHZ");
	guest_vm.tsc_hz = khz * 1000ull;
	stats_fds[vcpu->index] = syscall(SYS_ioctl, fd, KVM_GET_STATS_FD, NULL);
	errno = 0;
	self = vcpu;
	atomic_fetch_add(&nr_running, 1);
}

/* A vCPU has left the guest: does the mailbox say something new? */
static void after_run(struct mailbox *box)
{
	static _Atomic uint32_t seen;
	int error = errno;
	uint32_t answered = atomic_load(&box->answered);

	if (!offset_known) {
		offset_known = true;
		self->tsc_offset = tsc_offset_read(&guest_vm, self, ids[self->index]);
	}
	if (atomic_exchange(&seen, answered) != answered || atomic_load(&box->failed))
		sem_post(&changed);
	errno = error;
}

static int run_vcpu(int fd, void *arg)
{
	struct mailbox *box;
	int ret;

	if (__builtin_expect(!self, 0))
		first_run(fd);
	ret = syscall(SYS_ioctl, fd, KVM_RUN, arg);
	box = atomic_load_explicit(&watched, memory_order_acquire);
	if (__builtin_expect(box != NULL, 0))
		after_run(box);
	return ret;
}

/* counters.c asks for a vCPU's statistics while it runs. */
static int stats_of(int fd)
{
	struct vcpu *vcpu = find_vcpu(fd);

	return vcpu && stats_fds[vcpu->index] > 0 ? dup(stats_fds[vcpu->index]) : -1;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;
	int ret;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (request == KVM_RUN)
		return run_vcpu(fd, arg);
	if (request == KVM_GET_STATS_FD && (ret = stats_of(fd)) >= 0)
		return ret;
	ret = syscall(SYS_ioctl, fd, request, arg);
	learn(fd, request, arg, ret);
	return ret;
}
