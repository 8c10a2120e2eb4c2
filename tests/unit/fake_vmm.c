// SPDX-License-Identifier: GPL-2.0
/*
 * A VMM and its guest without KVM, for test_fake_vmm.py: KVM is the syscall() below, which libstorm.so finds before
 * libc's, and the guest, with fault_bench in it, is what KVM_RUN does. What the kernel would say in /sys/kernel/debug/kvm
 * stands in the folder FAKE_DEBUGFS.
 *
 * fake_vmm MINFLT FIXED ID...	the guest's own faults and KVM's a round, and the vCPUs' ids at KVM
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "mailbox.h"
#include "recording.h"

#define DEBUGFS		"/sys/kernel/debug/kvm"
#define GUEST_BYTES	(32ull << 20)
#define BOX_GPA		0x5000ull
#define AREA_GPA	(2ull << 20)
#define MAX_IDS		8

static uint8_t *memory;
static uint64_t minflt, fixed, total_fixed;
static int vm_fd, vcpu_fds[MAX_IDS], nr_ids;
static unsigned long ids[MAX_IDS];
static char folder[512];

static void tell(const char *name, long long value)
{
	char path[1200];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "w");
	if (file) {
		fprintf(file, "%lld\n", value);
		fclose(file);
	}
}

/* The path in FAKE_DEBUGFS of one in debugfs. */
static const char *redirect(const char *path, char *other, size_t bytes)
{
	if (strncmp(path, DEBUGFS, strlen(DEBUGFS)))
		return path;
	snprintf(other, bytes, "%s%s", getenv("FAKE_DEBUGFS"), path + strlen(DEBUGFS));
	return other;
}

int open(const char *path, int flags, ...)
{
	char other[600];
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
	va_end(args);
	return openat(AT_FDCWD, redirect(path, other, sizeof(other)), flags, mode);
}

int scandir(const char *path, struct dirent ***names, int (*filter)(const struct dirent *),
	    int (*compare)(const struct dirent **, const struct dirent **))
{
	char other[600];

	return scandirat(AT_FDCWD, redirect(path, other, sizeof(other)), names, filter, compare);
}

/* A host with NPT. */
FILE *fopen(const char *path, const char *mode)
{
	FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen");

	return strstr(path, "/parameters/npt") ? fmemopen((char *)"Y\n", 2, "r") : real(path, mode);
}

static int create_vm(void)
{
	vm_fd = dup(STDIN_FILENO);
	snprintf(folder, sizeof(folder), "%s/%d-%d", getenv("FAKE_DEBUGFS"), gettid(), vm_fd);
	if (!getenv("FAKE_NO_FOLDER"))
		mkdir(folder, 0755);
	tell("pf_fixed", 0);
	return vm_fd;
}

static int create_vcpu(unsigned long id)
{
	char name[600];

	snprintf(name, sizeof(name), "%s/vcpu%lu", folder, id);
	mkdir(name, 0755);
	snprintf(name, sizeof(name), "vcpu%lu/tsc-offset", id);
	tell(name, -1000 - (long long)id);
	return vcpu_fds[nr_ids++] = dup(STDIN_FILENO);
}

static void obey(struct mailbox *box)
{
	const struct mailbox_trial *trial = &box->trial;
	uint64_t samples = trial->mem_bytes / trial->stride_bytes * trial->rounds * sizeof(struct rec_fault);

	switch (box->command) {
	case MAILBOX_RESERVE:
		box->areas = (struct mailbox_areas) {
			.start_gpa = AREA_GPA, .bytes = GUEST_BYTES - AREA_GPA, .samples_gpa = AREA_GPA,
			.frames_gpa = AREA_GPA, .mem_gpa = AREA_GPA + ALIGN_UP(samples, HUGE_BYTES),
			.disjoint_gpa = GUEST_BYTES,
		};
		break;
	case MAILBOX_ROUND:
		box->results.minflt += minflt;
		tell("pf_fixed", total_fixed += fixed);
		break;
	}
}

/* One stay in the guest: until it rings, or for a millisecond. */
static int enter(int fd)
{
	struct mailbox *box = (struct mailbox *)(memory + BOX_GPA);
	static bool said;

	if (fd == vcpu_fds[0] && !said) {
		*box = (struct mailbox) {
			.magic = MAILBOX_MAGIC, .version = MAILBOX_VERSION, .bytes = sizeof(*box), .nonce = 7,
		};
		printf(MAILBOX_LINE "\n", BOX_GPA, 7ull);
		fflush(stdout);
		said = true;
	}
	if (fd == vcpu_fds[0] && atomic_load(&box->asked) != atomic_load(&box->answered)) {
		obey(box);
		atomic_fetch_add(&box->answered, 1);
	} else {
		usleep(1000);
	}
	return 0;
}

long syscall(long number, ...)
{
	long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
	unsigned long words[6];
	va_list args;
	int i;

	va_start(args, number);
	for (i = 0; i < 6; i++)
		words[i] = va_arg(args, unsigned long);
	va_end(args);
	if (number != SYS_ioctl || _IOC_TYPE(words[1]) != KVMIO)
		return real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
	switch (words[1]) {
	case KVM_CREATE_VM:
		return create_vm();
	case KVM_CREATE_VCPU:
		return create_vcpu(words[2]);
	case KVM_SET_USER_MEMORY_REGION:
		return 0;
	case KVM_GET_TSC_KHZ:
		return 1000000;
	case KVM_RUN:
		return enter(words[0]);
	}
	errno = ENOTTY;
	return -1;
}

static void *run_vcpu(void *fd)
{
	while (!ioctl((int)(intptr_t)fd, KVM_RUN, 0))
		;
	return NULL;
}

/* Not the process's first thread. */
static void *make_vm(void *count)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_BYTES, .userspace_addr = (uint64_t)memory };
	int fd = ioctl(STDIN_FILENO, KVM_CREATE_VM, 0), vcpus = (int)(intptr_t)count, i;
	pthread_t thread;

	ioctl(fd, KVM_SET_USER_MEMORY_REGION, &region);
	fprintf(stderr, "preloaded: '%s'\n", getenv("LD_PRELOAD"));
	for (i = 0; i < vcpus; i++)
		ioctl(fd, KVM_CREATE_VCPU, ids[i]);
	for (i = vcpus; i-- > 0;)
		pthread_create(&thread, NULL, run_vcpu, (void *)(intptr_t)vcpu_fds[i]);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int i;

	minflt = strtoull(argv[1], NULL, 10);
	fixed = strtoull(argv[2], NULL, 10);
	for (i = 3; i < argc; i++)
		ids[i - 3] = strtoul(argv[i], NULL, 10);
	memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_create(&thread, NULL, make_vm, (void *)(intptr_t)(argc - 3));
	for (;;)
		pause();
}
