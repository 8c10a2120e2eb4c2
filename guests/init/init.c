// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the emulated host: mount what KVM's statistics need, run one program, say how it ended, switch off.
 *
 * What to do is in /trial/argv, NUL-terminated words: first "@deadline=SECONDS" (of our own clock) and perhaps
 * "@swap", then the program and its arguments; "@recording" among them stands for the virtio port of that name.
 * Everything that happens is said on the port "orch.status", a line each, never on the console, which belongs to the
 * kernel:
 *
 *	pid1 SECONDS		we run; time since the kernel's clock started
 *	start SECONDS		the program was started
 *	stderr TEXT		a line that it wrote
 *	exit CODE | signal N | deadline SECONDS		how it ended
 *	end SECONDS		nothing more will come
 *
 * A kernel that hangs with interrupts off cannot say anything. So a watchdog device (QEMU's ib700, on the guest's own
 * clock) is fed every second; unfed for 10 s it raises an NMI, and with unknown_nmi_panic the kernel prints where it
 * hangs and dies.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define TRIAL_FILE	"/trial/argv"
#define MAX_ARGV_BYTES	4096
#define MAX_WORDS	128

#define IB700_FEED_PORT	0x443
#define IB700_OFF_PORT	0x441
#define IB700_10_S	10	/* timeout = 30 s - 2 s * value: time_map in QEMU's hw/watchdog/wdt_ib700.c */

#define FEED_MS		1000

static int status_fd = -1;
static bool has_watchdog;
static double deadline_s;

static double uptime_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void say(const char *format, ...)
{
	char line[1024];
	va_list args;
	int bytes;

	va_start(args, format);
	bytes = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (bytes > (int)sizeof(line) - 2)
		bytes = sizeof(line) - 2;
	line[bytes++] = '\n';
	if (status_fd < 0 || write(status_fd, line, bytes) != bytes)
		(void)!write(STDERR_FILENO, line, bytes);
}

/* The end, also of every failure: restart, which QEMU's -no-reboot turns into its exit. */
static void __attribute__((noreturn)) leave(void)
{
	if (has_watchdog)
		outb(0, IB700_OFF_PORT);
	say("end %.6f", uptime_s());
	sync();
	reboot(LINUX_REBOOT_CMD_RESTART);
	for (;;)
		pause();
}

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	char reason[512];
	int error = errno;
	va_list args;

	va_start(args, format);
	vsnprintf(reason, sizeof(reason), format, args);
	va_end(args);
	say("stderr init: %s%s%s", reason, error ? ": " : "", error ? strerror(error) : "");
	say("exit 125");
	leave();
}

static void mount_at(const char *type, const char *where)
{
	mkdir(where, 0755);
	/* EBUSY: CONFIG_DEVTMPFS_MOUNT was quicker. */
	if (mount(type, where, type, 0, NULL) && errno != EBUSY)
		fail("mount of %s", where);
	errno = 0;
}

/* Opens /dev/vportNpM whose name is @name; the names come from QEMU's virtserialport devices. */
static bool find_port(const char *name, char *path, size_t bytes)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	bool found = false;

	while (ports && !found && (entry = readdir(ports))) {
		char file[512], text[64] = "";
		int fd;

		snprintf(file, sizeof(file), "/sys/class/virtio-ports/%s/name", entry->d_name);
		fd = open(file, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		(void)!read(fd, text, sizeof(text) - 1);
		close(fd);
		text[strcspn(text, "\n")] = 0;
		found = !strcmp(text, name);
		if (found)
			snprintf(path, bytes, "/dev/%s", entry->d_name);
	}
	if (ports)
		closedir(ports);
	errno = 0;
	return found;
}

static void open_status(void)
{
	char path[300];

	if (!find_port("orch.status", path, sizeof(path)))
		fail("no virtio port named orch.status");
	status_fd = open(path, O_WRONLY | O_CLOEXEC);
	if (status_fd < 0)
		fail("open %s", path);
}

/*
 * High-resolution timers start about a second into the boot (clocksource switch); before that every sleep is rounded
 * up to a tick, and the storm's phase would mean nothing.
 */
static void wait_for_hrtimers(void)
{
	struct timespec resolution, pause = { .tv_nsec = 1000000 };
	int tries;

	for (tries = 0; tries < 5000; tries++) {
		clock_getres(CLOCK_MONOTONIC, &resolution);
		if (resolution.tv_sec == 0 && resolution.tv_nsec == 1)
			return;
		nanosleep(&pause, NULL);
	}
	fail("no high-resolution timers after 5000 ticks");
}

/*
 * A kernel with compaction (huge pages select it) moves pages by itself when memory is fragmented, 20 of 100 by default,
 * since Linux 5.9. Each such move is an invalidation that no storm has made and no recording tells of.
 */
static void stop_compaction(void)
{
	int fd = open("/proc/sys/vm/compaction_proactiveness", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "0", 1) != 1)
		fail("write of compaction_proactiveness");
	if (fd >= 0)
		close(fd);
	errno = 0;
}

static void start_watchdog(void)
{
	has_watchdog = !ioperm(IB700_OFF_PORT, IB700_FEED_PORT - IB700_OFF_PORT + 1, 1);
	if (!has_watchdog)
		fail("ioperm for the watchdog");
	outb(IB700_10_S, IB700_FEED_PORT);
}

static size_t read_trial(char *text)
{
	int fd = open(TRIAL_FILE, O_RDONLY | O_CLOEXEC);
	ssize_t bytes;

	if (fd < 0)
		fail("open %s", TRIAL_FILE);
	bytes = read(fd, text, MAX_ARGV_BYTES);
	close(fd);
	if (bytes <= 0 || bytes == MAX_ARGV_BYTES || text[bytes - 1])
		fail("%s does not hold NUL-terminated words", TRIAL_FILE);
	return bytes;
}

/*
 * MADV_PAGEOUT moves anonymous pages only if there is somewhere to move them to: the ram disk becomes swap when the
 * trial says "@swap". A swap header is one page: the bad-page count and the version at offset 1024, the
 * signature at its end (union swap_header in include/linux/swap.h).
 */
static void make_swap(void)
{
	static char page[PAGE_BYTES];
	uint32_t *info = (uint32_t *)(page + 1024);
	unsigned long long sectors = 0;
	FILE *size = fopen("/sys/block/ram0/size", "r");
	int fd = open("/dev/ram0", O_WRONLY | O_CLOEXEC);

	if (!size || fscanf(size, "%llu", &sectors) != 1 || fd < 0)
		fail("no ram disk to swap to");
	fclose(size);
	info[0] = 1;
	info[1] = sectors / 8 - 1;
	memcpy(page + PAGE_BYTES - 10, "SWAPSPACE2", 10);
	if (write(fd, page, sizeof(page)) != sizeof(page))
		fail("write of the swap header");
	close(fd);
	if (swapon("/dev/ram0", 0))
		fail("swapon");
}

static void take_word(char *word, char **words, int *count, const char *recording)
{
	if (!*word)
		return;		/* padding: the file has one size whatever the trial is called */
	if (!strncmp(word, "@deadline=", 10))
		deadline_s = strtod(word + 10, NULL);
	else if (!strcmp(word, "@swap"))
		make_swap();
	else
		words[(*count)++] = !strcmp(word, "@recording") ? (char *)recording : word;
}

static void split_words(char *text, size_t bytes, char **words, const char *recording)
{
	size_t offset = 0;
	int count = 0;

	while (offset < bytes && count < MAX_WORDS - 1) {
		char *word = text + offset;

		offset += strlen(word) + 1;
		take_word(word, words, &count, recording);
	}
	words[count] = NULL;
	if (!count || deadline_s <= 0)
		fail("%s names no program, or no deadline", TRIAL_FILE);
}

static pid_t start_program(char **words, int *stderr_fd)
{
	int pipe_fds[2];
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC))
		fail("pipe");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (!pid) {
		struct sched_param normal = { .sched_priority = 0 };

		dup2(pipe_fds[1], STDOUT_FILENO);
		dup2(pipe_fds[1], STDERR_FILENO);
		sched_setscheduler(0, SCHED_OTHER, &normal);
		execv(words[0], words);
		_exit(127);
	}
	close(pipe_fds[1]);
	*stderr_fd = pipe_fds[0];
	return pid;
}

/* Pass on whole lines; returns false at the end of the stream. */
static bool forward_lines(int fd, char *line, size_t *used, size_t room)
{
	ssize_t bytes = read(fd, line + *used, room - *used);
	char *newline;

	if (bytes <= 0)
		return bytes < 0 && errno == EINTR;
	*used += bytes;
	while ((newline = memchr(line, '\n', *used)) || *used == room) {
		size_t length = newline ? (size_t)(newline - line) : *used;
		size_t taken = newline ? length + 1 : length;

		say("stderr %.*s", (int)length, line);
		memmove(line, line + taken, *used - taken);
		*used -= taken;
	}
	return true;
}

static void watch(pid_t pid, int stderr_fd)
{
	double end_s = uptime_s() + deadline_s;
	struct pollfd stream = { .fd = stderr_fd, .events = POLLIN };
	char line[512];
	size_t used = 0;
	int status;

	for (;;) {
		if (poll(&stream, 1, FEED_MS) > 0 && !forward_lines(stderr_fd, line, &used, sizeof(line)))
			break;
		outb(IB700_10_S, IB700_FEED_PORT);
		if (uptime_s() > end_s) {
			say("deadline %.6f", uptime_s());
			kill(pid, SIGKILL);
			return;
		}
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		say("signal %d", WTERMSIG(status));
	else
		say("exit %d", WEXITSTATUS(status));
}

int main(void)
{
	static char text[MAX_ARGV_BYTES];
	static char *words[MAX_WORDS];
	struct sched_param high = { .sched_priority = 50 };
	char recording[300];
	int stderr_fd;
	size_t bytes;
	pid_t pid;

	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("debugfs", "/sys/kernel/debug");
	open_status();
	say("pid1 %.6f", uptime_s());
	if (!find_port("orch.recording", recording, sizeof(recording)))
		fail("no virtio port named orch.recording");
	/* Hogs must not keep us from feeding the watchdog. */
	if (sched_setscheduler(0, SCHED_FIFO, &high))
		fail("sched_setscheduler");
	start_watchdog();
	stop_compaction();
	wait_for_hrtimers();
	bytes = read_trial(text);
	split_words(text, bytes, words, recording);
	pid = start_program(words, &stderr_fd);
	say("start %.6f", uptime_s());
	watch(pid, stderr_fd);
	leave();
}
