// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's statistics of this VM, and each vCPU's TSC offset.
 *
 * Since Linux 5.14 both come over file descriptors (KVM_GET_STATS_FD; KVM_VCPU_TSC_OFFSET since 5.16); before that
 * only debugfs has them, in /sys/kernel/debug/kvm/TID-FD/, named by the thread that made the VM
 * (kvm_create_vm_debugfs() in virt/kvm/kvm_main.c, 5.10), where each file is the sum over the VM's vCPUs.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common.h"
#include "fault_vmm.h"

static void store(struct rec_counter *counters, uint32_t *count, const char *name, uint64_t value, bool after)
{
	uint32_t i;

	for (i = 0; i < *count; i++) {
		if (strncmp(counters[i].name, name, sizeof(counters[i].name) - 1) == 0)
			break;
	}
	if (i == *count) {
		die_if(i == MAX_COUNTERS, "KVM has more than %d statistics", MAX_COUNTERS);
		if (after)
			return;		/* appeared in the middle of the run: no "before" to compare with */
		memset(&counters[i], 0, sizeof(counters[i]));
		strncpy(counters[i].name, name, sizeof(counters[i].name) - 1);
		(*count)++;
	}
	if (after)
		counters[i].after += value;
	else
		counters[i].before += value;
}

static void read_exactly(int fd, void *buffer, size_t bytes, off_t offset)
{
	die_if(pread(fd, buffer, bytes, offset) != (ssize_t)bytes, "read of KVM's binary statistics");
}

static void read_stats_fd(int fd, struct rec_counter *counters, uint32_t *count, bool after)
{
	struct kvm_stats_header header;
	size_t desc_bytes;
	uint32_t i;

	read_exactly(fd, &header, sizeof(header), 0);
	desc_bytes = sizeof(struct kvm_stats_desc) + header.name_size;
	for (i = 0; i < header.num_desc; i++) {
		uint8_t raw[sizeof(struct kvm_stats_desc) + 256];
		struct kvm_stats_desc *desc = (struct kvm_stats_desc *)raw;
		uint64_t value;

		die_if(desc_bytes > sizeof(raw), "a KVM statistic's name of %u bytes", header.name_size);
		read_exactly(fd, raw, desc_bytes, header.desc_offset + i * desc_bytes);
		if (desc->size != 1)
			continue;	/* histograms are not counters */
		read_exactly(fd, &value, sizeof(value), header.data_offset + desc->offset);
		store(counters, count, desc->name, value, after);
	}
}

static bool read_binary(const struct vm *vm, struct rec_counter *counters, uint32_t *count, bool after)
{
	int fd = ioctl(vm->vm_fd, KVM_GET_STATS_FD, NULL);
	uint32_t i;

	if (fd < 0)
		return false;
	read_stats_fd(fd, counters, count, after);
	close(fd);
	for (i = 0; i < vm->params->vcpus; i++) {
		fd = ioctl(vm->vcpus[i].fd, KVM_GET_STATS_FD, NULL);
		die_if(fd < 0, "KVM_GET_STATS_FD of vCPU %u", i);
		read_stats_fd(fd, counters, count, after);
		close(fd);
	}
	return true;
}

static void debugfs_path(const struct vm *vm, char *path, size_t bytes)
{
	snprintf(path, bytes, "/sys/kernel/debug/kvm/%d-%d", vm->creator ? vm->creator : getpid(), vm->vm_fd);
}

static bool read_number(int dir, const char *name, long long *value)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	char text[32];
	ssize_t bytes;

	if (fd < 0)
		return false;
	bytes = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (bytes <= 0)
		return false;
	text[bytes] = 0;
	*value = strtoll(text, NULL, 10);
	return true;
}

static void read_debugfs(const struct vm *vm, struct rec_counter *counters, uint32_t *count, bool after)
{
	struct dirent **names;
	char path[PATH_MAX];
	int i, found;

	debugfs_path(vm, path, sizeof(path));
	/* Sorted, so that two runs write the same bytes. */
	found = scandir(path, &names, NULL, alphasort);
	if (found < 0) {
		if (!after)
			fprintf(stderr, "no statistics of KVM's: neither KVM_GET_STATS_FD nor %s: %s\n", path,
				strerror(errno));
		return;
	}
	for (i = 0; i < found; i++) {
		int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		long long value;

		if (names[i]->d_type == DT_REG && read_number(dir, names[i]->d_name, &value))
			store(counters, count, names[i]->d_name, value, after);
		close(dir);
		free(names[i]);
	}
	free(names);
}

uint32_t counters_read(const struct vm *vm, struct rec_counter *counters, bool after)
{
	static uint32_t count;

	if (!read_binary(vm, counters, &count, after))
		read_debugfs(vm, counters, &count, after);
	errno = 0;
	return count;
}

int64_t tsc_offset_read(const struct vm *vm, const struct vcpu *vcpu, unsigned long id)
{
	int64_t offset = 0;
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uint64_t)&offset,
	};
	char path[PATH_MAX], name[64];
	long long value;
	int dir;

	if (!ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr))
		return offset;
	debugfs_path(vm, path, sizeof(path));
	snprintf(name, sizeof(name), "vcpu%lu/tsc-offset", id);
	dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	die_if(dir < 0 || !read_number(dir, name, &value),
	       "no TSC offset of vCPU %lu: this kernel has neither KVM_VCPU_TSC_OFFSET nor %s/%s", id, path, name);
	close(dir);
	return value;
}
