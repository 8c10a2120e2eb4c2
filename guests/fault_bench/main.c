// SPDX-License-Identifier: GPL-2.0
/*
 * fault_bench - what a guest's page fault costs in a Linux guest, while its host's memory is being invalidated.
 *
 * PID 1 of the guest, or any program of root's in it. It takes no options: what to do comes through the mailbox from
 * libstorm.so in the VMM, so that a guest boots alike for every cell and every arm. When all is done the host ends
 * the VMM; this program never comes to an end of its own but by an error.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdarg.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "fault_bench.h"

#define SAY_AGAIN	1000	/* looks at the mailbox: the kernel may have broken into the line with one of its own */

static struct bench bench;
static bool heard;

void ring(void)
{
	outb(0, MAILBOX_PORT);
}

void fail(const char *format, ...)
{
	char reason[sizeof(bench.box->reason)];
	va_list args;

	va_start(args, format);
	vsnprintf(reason, sizeof(reason), format, args);
	va_end(args);
	printf(MAILBOX_ERROR "%s\n", reason);
	fflush(stdout);
	if (heard) {
		memcpy(bench.box->reason, reason, sizeof(reason));
		atomic_store(&bench.box->failed, 1);
		ring();
	}
	/* A PID 1 that ends is a panic. QEMU's -no-reboot makes a restart the end of the VMM. */
	if (getpid() == 1) {
		tcdrain(STDOUT_FILENO);
		reboot(LINUX_REBOOT_CMD_RESTART);
	}
	_exit(1);
}

static void mount_at(const char *type, const char *where)
{
	mkdir(where, 0755);
	/* EBUSY: CONFIG_DEVTMPFS_MOUNT was quicker. */
	if (mount(type, where, type, 0, NULL) && errno != EBUSY)
		fail("mount of %s: %s", where, strerror(errno));
}

/* The kernel gives PID 1 a console only if the initramfs has /dev/console. */
static void become_init(void)
{
	int console;

	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	console = open("/dev/console", O_RDWR);
	if (console < 0)
		fail("open /dev/console: %s", strerror(errno));
	dup2(console, STDIN_FILENO);
	dup2(console, STDOUT_FILENO);
	dup2(console, STDERR_FILENO);
}

/* Until the kernel has its high-resolution timers every sleep is rounded up to a tick: see init/init.c. */
static void wait_for_hrtimers(void)
{
	struct timespec resolution;
	int tries;

	for (tries = 0; tries < 5000; tries++) {
		clock_getres(CLOCK_MONOTONIC, &resolution);
		if (resolution.tv_sec == 0 && resolution.tv_nsec == 1)
			return;
		sleep_us(1000);
	}
	fail("no high-resolution timers after 5000 ticks");
}

void write_setting(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;		/* a kernel without compaction, or without huge pages, does not do it either */
	if (write(fd, value, strlen(value)) < 0)
		fail("write to %s: %s", path, strerror(errno));
	close(fd);
}

static uint64_t make_mailbox(void)
{
	struct mailbox *box = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t gpa;

	_Static_assert(sizeof(*box) <= PAGE_BYTES, "the mailbox is one page");
	if (box == MAP_FAILED || mlock(box, PAGE_BYTES))
		fail("no page for the mailbox: %s", strerror(errno));
	box->version = MAILBOX_VERSION;
	box->bytes = sizeof(*box);
	box->nonce = rdtsc_ordered();
	box->magic = MAILBOX_MAGIC;
	pagemap_read(box, &gpa, 1);
	bench.box = box;
	return gpa;
}

static void obey(struct mailbox *box)
{
	const struct mailbox_trial *trial = &box->trial;

	switch (box->command) {
	case MAILBOX_RESERVE:
		bench.params = (struct params) {
			.seed = trial->seed, .vcpus = trial->vcpus, .mem_bytes = trial->mem_bytes,
			.stride_bytes = trial->stride_bytes, .rounds = trial->rounds, .write = trial->write,
			.random = trial->random,
		};
		reserve(&bench);
		faulting_prepare(&bench);
		break;
	case MAILBOX_WARM:
	case MAILBOX_ROUND:
		faulting_run(&bench);
		break;
	case MAILBOX_JITTER:
		jitter_measure(box);
		break;
	default:
		fail("the host asks for command %u, which is not known here", box->command);
	}
}

int main(void)
{
	uint32_t done = 0, looks = 0;
	uint64_t gpa;

	if (getpid() == 1)
		become_init();
	if (ioperm(MAILBOX_PORT, 1, 1))
		fail("ioperm: the guest's kernel needs CONFIG_X86_IOPL_IOPERM, and this program needs root");
	/*
	 * Compaction moves locked pages too, unless it is told not to, and others by itself when memory is fragmented;
	 * khugepaged copies pages into huge ones.
	 */
	write_setting("/proc/sys/vm/compact_unevictable_allowed", "0");
	write_setting("/proc/sys/vm/compaction_proactiveness", "0");
	write_setting("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "3600000");
	wait_for_hrtimers();
	gpa = make_mailbox();
	for (;;) {
		if (!heard && looks++ % SAY_AGAIN == 0) {
			printf(MAILBOX_LINE "\n", (unsigned long long)gpa, (unsigned long long)bench.box->nonce);
			fflush(stdout);
		}
		if (atomic_load(&bench.box->asked) == done) {
			sleep_us(MAILBOX_POLL_US);
			continue;
		}
		heard = true;
		obey(bench.box);
		atomic_store(&bench.box->answered, ++done);
		ring();
	}
}
