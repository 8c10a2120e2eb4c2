// SPDX-License-Identifier: GPL-2.0
/*
 * Run one program on a lab machine so that nothing but the machine itself can take it away: in a session of its own,
 * out of the cgroup of the SSH session, with a deadline on this machine's clock.
 *
 *	lab_agent run --dir DIR --deadline SECONDS --log whole|new [--cpus 2,3] [--root ROOT] -- PROGRAM ...
 *
 * With --root the program sees ROOT as / and DIR as its /trial (root.c).
 * Returns once the program's keeper runs; with 3 if one was started in DIR before. In DIR it leaves:
 *
 *	started		empty: made before anything else
 *	keeper		"PID START BOOT PROGRAM": of the process that watches; START is field 22 of /proc/PID/stat
 *	status.log	lines as guests/init/init.c writes them: pid1, start, stderr, exit | signal | deadline, end
 *	kernel.log	what the kernel logged: of the whole boot, or since the program's start
 *	done		written last, by one rename: the rest is whole and on the disk
 *
 * All times are of CLOCK_BOOTTIME: setting the machine's clock moves nothing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "lab_agent.h"

#define RESERVE_BYTES	(256 << 10)	/* given back at the end, so that a full disk leaves room to say what happened */
#define RECORD_BYTES	8192		/* CONSOLE_EXT_LOG_MAX of kernel/printk/printk.c: the most that one read gives */
#define LINE_BYTES	512
#define NAME_BYTES	64
#define EXIT_STARTED	3

struct job {
	const char *dir;
	const char *root;
	double deadline_s;
	bool whole_log;
	cpu_set_t cpus;
	bool pinned;
	char **words;
};

static int status_fd = -1;

static double uptime_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	char line[LINE_BYTES + 32];
	va_list args;
	int bytes;

	va_start(args, format);
	bytes = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (bytes > (int)sizeof(line) - 2)
		bytes = sizeof(line) - 2;
	line[bytes++] = '\n';
	if (write(status_fd, line, bytes) != bytes)
		perror("status.log");	/* to agent.log; there is nobody else to tell */
}

/* Field 22 of /proc/PID/stat: with the PID and the boot it names one process for good. */
static unsigned long long start_time(pid_t pid)
{
	char path[NAME_BYTES], text[1024], *after;
	unsigned long long start = 0;
	int field;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (!read_text(path, text, sizeof(text)))
		return 0;
	after = strrchr(text, ')');	/* the name before it may hold anything */
	for (field = 2; after && field < 22; field++)
		after = strchr(after + 1, ' ');
	if (after)
		sscanf(after, "%llu", &start);
	return start;
}

static void boot_id(char *id)
{
	char text[NAME_BYTES];

	read_text("/proc/sys/kernel/random/boot_id", text, sizeof(text));
	if (sscanf(text, "%40s", id) != 1)
		strcpy(id, "-");
}

int stop(const char *dir)
{
	char path[PATH_BYTES], text[256], boot[NAME_BYTES], now[NAME_BYTES];
	unsigned long long start;
	int keeper, program;

	snprintf(path, sizeof(path), "%s/keeper", dir);
	if (!read_text(path, text, sizeof(text)) ||
	    sscanf(text, "%d %llu %63s %d", &keeper, &start, boot, &program) != 4)
		return 0;
	boot_id(now);
	if (strcmp(boot, now) || start_time(keeper) != start)
		return 0;
	kill(-program, SIGKILL);
	kill(-keeper, SIGKILL);
	return 0;
}

static void take_cpus(struct job *job, const char *list)
{
	const char *at = list;
	char *end;

	CPU_ZERO(&job->cpus);
	for (;;) {
		unsigned long cpu = strtoul(at, &end, 10);

		die_if(end == at || cpu >= CPU_SETSIZE || (*end && *end != ','), "--cpus %s: not a list of CPUs", list);
		CPU_SET(cpu, &job->cpus);
		if (!*end)
			break;
		at = end + 1;
	}
	job->pinned = true;
}

static void parse(struct job *job, int argc, char **argv)
{
	static const struct option options[] = {
		{ "dir", required_argument, NULL, 'd' }, { "deadline", required_argument, NULL, 's' },
		{ "log", required_argument, NULL, 'l' }, { "cpus", required_argument, NULL, 'c' },
		{ "root", required_argument, NULL, 'r' }, { NULL, 0, NULL, 0 },
	};
	int key;

	/* '+': what follows the program's name is its own. */
	while ((key = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (key == 'd')
			job->dir = optarg;
		else if (key == 's')
			job->deadline_s = strtod(optarg, NULL);
		else if (key == 'l')
			job->whole_log = !strcmp(optarg, "whole");
		else if (key == 'c')
			take_cpus(job, optarg);
		else if (key == 'r')
			job->root = optarg;
		else
			_exit(1);	/* getopt has said what is wrong */
	}
	job->words = argv + optind;
	errno = 0;
	die_if(!job->dir || job->deadline_s <= 0 || !job->words[0], "--dir, --deadline and a program are needed");
}

void leave_cgroup(void)
{
	int fd = open("/sys/fs/cgroup/cgroup.procs", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		(void)!write(fd, "0", 1);
		close(fd);
	}
	errno = 0;
}

void detach_streams(const char *output)
{
	int null = open("/dev/null", O_RDONLY), log = open(output, O_WRONLY | O_CREAT | O_APPEND, 0644);

	die_if(null < 0 || log < 0, "open %s", output);
	dup2(null, STDIN_FILENO);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	close(null);
	close(log);
}

static void make_reserve(void)
{
	int fd = open("reserve", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	errno = fd < 0 ? errno : posix_fallocate(fd, 0, RESERVE_BYTES);
	die_if(errno, "no room in the folder");
	close(fd);
}

static int open_kernel_log(bool whole)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, whole ? SEEK_SET : SEEK_END);
	errno = 0;
	return fd;
}

/* Records are "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT\n" and continuation lines (Documentation/ABI/testing/dev-kmsg). */
static void keep_kernel_log(int from)
{
	char record[RECORD_BYTES + 1], *text, *newline;
	unsigned long long sequence, at_us;
	FILE *to = fopen("kernel.log", "we");
	unsigned int priority;
	ssize_t bytes;

	while (to && from >= 0 && ((bytes = read(from, record, RECORD_BYTES)) > 0 || errno == EPIPE)) {
		if (bytes < 0)
			continue;	/* EPIPE: overwritten before we came; the next read goes on behind the gap */
		record[bytes] = 0;
		text = strchr(record, ';');
		newline = strchr(record, '\n');
		if (!text || sscanf(record, "%u,%llu,%llu", &priority, &sequence, &at_us) != 3)
			continue;
		if (newline)
			*newline = 0;
		fprintf(to, "[%5llu.%06llu] %s\n", at_us / 1000000, at_us % 1000000, text + 1);
	}
	if (to) {
		fflush(to);
		fsync(fileno(to));
		fclose(to);
	}
}

static pid_t start_program(const struct job *job, int *output)
{
	int pipe_fds[2];
	pid_t pid;

	die_if(pipe2(pipe_fds, O_CLOEXEC), "pipe");
	pid = fork();
	die_if(pid < 0, "fork");
	if (!pid) {
		setpgid(0, 0);
		dup2(pipe_fds[1], STDOUT_FILENO);
		dup2(pipe_fds[1], STDERR_FILENO);
		die_if(job->pinned && sched_setaffinity(0, sizeof(job->cpus), &job->cpus), "sched_setaffinity to --cpus");
		if (job->root)
			enter_root(job->root);
		execv(job->words[0], job->words);
		die("exec of %s", job->words[0]);
	}
	setpgid(pid, pid);	/* both do it: whoever comes first */
	close(pipe_fds[1]);
	*output = pipe_fds[0];
	return pid;
}

/* Pass on whole lines; returns false at the end of the stream. */
static bool forward_lines(int fd, char *line, size_t *used)
{
	ssize_t bytes = read(fd, line + *used, LINE_BYTES - *used);
	char *newline;

	if (bytes <= 0)
		return bytes < 0 && errno == EINTR;
	*used += bytes;
	while ((newline = memchr(line, '\n', *used)) || *used == LINE_BYTES) {
		size_t length = newline ? (size_t)(newline - line) : *used;
		size_t taken = newline ? length + 1 : length;

		say("stderr %.*s", (int)length, line);
		memmove(line, line + taken, *used - taken);
		*used -= taken;
	}
	return true;
}

static void watch(const struct job *job, pid_t pid, int output)
{
	double end_s = uptime_s() + job->deadline_s, left_s;
	struct pollfd stream = { .fd = output, .events = POLLIN };
	char line[LINE_BYTES];
	size_t used = 0;
	int status;

	while ((left_s = end_s - uptime_s()) > 0)
		if (poll(&stream, 1, left_s > 3600 ? 3600000 : (int)(left_s * 1e3) + 1) > 0 &&
		    !forward_lines(output, line, &used))
			break;
	if (left_s <= 0) {
		say("deadline %.6f", uptime_s());
		kill(-pid, SIGKILL);
		waitpid(pid, &status, 0);
		return;
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		say("signal %d", WTERMSIG(status));
	else
		say("exit %d", WEXITSTATUS(status));
	kill(-pid, SIGKILL);	/* what it left behind would disturb the next one */
}

static void sync_file(const char *name)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		fsync(fd);
		close(fd);
	}
}

static void keep(const struct job *job, int ready)
{
	char boot[NAME_BYTES], text[256];
	int output, log;
	pid_t pid;

	make_reserve();
	status_fd = open("status.log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	die_if(status_fd < 0, "open status.log");
	say("pid1 %.6f", uptime_s());
	log = open_kernel_log(job->whole_log);
	pid = start_program(job, &output);
	boot_id(boot);
	snprintf(text, sizeof(text), "%d %llu %s %d\n", getpid(), start_time(getpid()), boot, pid);
	write_whole("keeper", text);
	say("start %.6f", uptime_s());
	die_if(write(ready, "+", 1) != 1, "the starter is gone");
	close(ready);
	detach_streams("agent.log");
	watch(job, pid, output);
	unlink("reserve");
	keep_kernel_log(log);
	sync_file("recording.bin");
	say("end %.6f", uptime_s());
	fsync(status_fd);
	write_whole("done", "done\n");
	sync_file(".");
}

int run(int argc, char **argv)
{
	static struct job job;
	int pipe_fds[2], fd;
	char answer;
	pid_t pid;

	parse(&job, argc, argv);
	die_if(chdir(job.dir), "%s", job.dir);
	/* A tool whose connection broke while it asked for this asks again. */
	fd = open("started", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0 && errno == EEXIST)
		return EXIT_STARTED;
	die_if(fd < 0, "open started");
	close(fd);
	die_if(pipe2(pipe_fds, O_CLOEXEC), "pipe");
	pid = fork();
	die_if(pid < 0, "fork");
	if (!pid) {
		close(pipe_fds[0]);
		die_if(setsid() < 0, "setsid");
		signal(SIGHUP, SIG_IGN);
		leave_cgroup();
		keep(&job, pipe_fds[1]);
		_exit(0);
	}
	close(pipe_fds[1]);
	errno = 0;
	/* Its own stderr is still ours: what it dies of stands there. */
	return read(pipe_fds[0], &answer, 1) == 1 ? 0 : 1;
}
