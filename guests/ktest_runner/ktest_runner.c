// SPDX-License-Identifier: GPL-2.0
/*
 * Runs the kernel's own selftests one after the other, each until it ends or its time is up, and says how it went.
 *
 *	ktest_runner --list FILE --out FILE
 *
 * A line of the list is a test: its time in seconds, its program below /selftests, and its arguments, by one blank
 * each. What comes out is KTAP (Documentation/dev-tools/ktap.rst) with a number in front of everything that is not
 * ours, so that no test can speak for another one, whatever it prints:
 *
 *	KTAP version 1
 *	1..2
 *	# 1 begin x86_64/state_test
 *	# 1 out what it printed
 *	# 1 log what the kernel logged meanwhile
 *	not ok 1 x86_64/state_test # exit=254 seconds=0.012
 *	...
 *	ok 2 x86_64/evmcs_test # SKIP exit=4 seconds=0.001
 *	# end 2
 *
 * Seconds are of the guest's clock (CLOCK_MONOTONIC). The lines of a test are written as they come: if the kernel dies
 * under a test, they say which one it was.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

/* The project's own tests run it on the machine itself, with other places. */
#ifndef TESTS_FOLDER
#define TESTS_FOLDER	"/selftests/"
#define KERNEL_LOG	"/dev/kmsg"
#endif
#define MAX_TESTS	256
#define MAX_WORDS	32
#define MAX_LINES	400	/* of one test's output, and as many of the kernel's */
#define LINE_BYTES	512
#define RECORD_BYTES	8192	/* CONSOLE_EXT_LOG_MAX of kernel/printk/printk.c: what one read of /dev/kmsg can give */
#define POLL_MS		20
#define EXIT_SKIP	4	/* KSFT_SKIP of tools/testing/selftests/kselftest.h */

struct ktest {
	double timeout_s;
	char *words[MAX_WORDS];	/* the program's path, its arguments, NULL */
	const char *name;	/* with the arguments, as the list has it */
};

struct ending {
	bool timeout;
	int status;		/* as wait() gives it */
	double seconds;
};

/* Lines on their way from a pipe to the report. */
struct stream {
	int fd;
	int number;
	int lines;
	size_t used;
	char line[LINE_BYTES];
};

static FILE *out;
static int kmsg_fd = -1;

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* One line of foreign text: control characters become '?', so that it is one line and stays one. */
static void say_line(int number, const char *kind, int *lines, const char *text, size_t bytes)
{
	size_t i;

	if (++*lines > MAX_LINES)
		return;
	fprintf(out, "# %d %s ", number, kind);
	for (i = 0; i < bytes; i++)
		fputc((unsigned char)text[i] < 32 && text[i] != '\t' ? '?' : text[i], out);
	fputc('\n', out);
	fflush(out);
}

static void say_left_out(int number, const char *kind, int lines)
{
	if (lines > MAX_LINES)
		fprintf(out, "# %d %s (%d more lines)\n", number, kind, lines - MAX_LINES);
}

/* Pass on whole lines; false at the end of the stream, or if there is nothing to read now. */
static bool forward(struct stream *from)
{
	ssize_t bytes = read(from->fd, from->line + from->used, sizeof(from->line) - from->used);
	char *newline;

	if (bytes <= 0)
		return bytes < 0 && errno == EINTR;
	from->used += bytes;
	while ((newline = memchr(from->line, '\n', from->used)) || from->used == sizeof(from->line)) {
		size_t length = newline ? (size_t)(newline - from->line) : from->used;
		size_t taken = newline ? length + 1 : length;

		say_line(from->number, "out", &from->lines, from->line, length);
		memmove(from->line, from->line + taken, from->used - taken);
		from->used -= taken;
	}
	return true;
}

static void finish_stream(struct stream *from)
{
	while (forward(from))
		;
	if (from->used)
		say_line(from->number, "out", &from->lines, from->line, from->used);
	say_left_out(from->number, "out", from->lines);
	close(from->fd);
}

/*
 * What the kernel has logged since the last call. A record is "PRIORITY,NUMBER,TIME,FLAGS;TEXT\n", then perhaps lines
 * that begin with a blank (Documentation/ABI/testing/dev-kmsg). EPIPE: the oldest were overwritten, go on with the next.
 */
static void forward_kernel_log(int number)
{
	char record[RECORD_BYTES];
	int lines = 0;

	for (;;) {
		ssize_t bytes = read(kmsg_fd, record, sizeof(record) - 1);
		char *text;

		if (bytes < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (bytes <= 0)
			break;
		record[bytes] = 0;
		text = strchr(record, ';');
		if (text)
			say_line(number, "log", &lines, text + 1, strcspn(text + 1, "\n"));
	}
	say_left_out(number, "log", lines);
	errno = 0;
}

static pid_t start(const struct ktest *test, int *output_fd)
{
	int fds[2];
	pid_t pid;

	die_if(pipe2(fds, O_CLOEXEC), "pipe");
	pid = fork();
	die_if(pid < 0, "fork");
	if (!pid) {
		/* A group of its own: what it leaves running is found and ended. */
		setpgid(0, 0);
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		execv(test->words[0], test->words);
		fprintf(stderr, "exec of %s: %s\n", test->words[0], strerror(errno));
		_exit(127);
	}
	setpgid(pid, pid);
	close(fds[1]);
	die_if(fcntl(fds[0], F_SETFL, O_NONBLOCK), "fcntl");
	*output_fd = fds[0];
	return pid;
}

/*
 * End what a test left running. Children that outlive their parent are ours, since we are their subreaper; one that has
 * left the group is not waited for long.
 */
static void end_group(pid_t pid, bool reaped)
{
	int tries;

	kill(-pid, SIGKILL);
	if (!reaped)
		waitpid(pid, NULL, 0);
	for (tries = 0; tries < 50; tries++) {
		pid_t left = waitpid(-1, NULL, WNOHANG);

		if (left < 0)
			break;
		if (!left)
			usleep(POLL_MS * 1000);
	}
	errno = 0;
}

static struct ending run(const struct ktest *test, int number)
{
	struct stream output = { .number = number };
	struct ending ending = { 0 };
	double started = now_s();
	pid_t pid = start(test, &output.fd);

	for (;;) {
		struct pollfd ready = { .fd = output.fd, .events = POLLIN };

		/* A closed pipe is always ready: then only the clock and the process count. */
		if (poll(&ready, 1, POLL_MS) > 0 && !forward(&output))
			usleep(POLL_MS * 1000);
		if (waitpid(pid, &ending.status, WNOHANG) == pid)
			break;
		if (now_s() - started > test->timeout_s) {
			ending.timeout = true;
			break;
		}
	}
	ending.seconds = now_s() - started;
	end_group(pid, !ending.timeout);
	finish_stream(&output);
	return ending;
}

static void say_ending(int number, const struct ktest *test, const struct ending *ending)
{
	int code = WIFEXITED(ending->status) ? WEXITSTATUS(ending->status) : -1;
	bool skip = !ending->timeout && code == EXIT_SKIP;
	bool good = !ending->timeout && (code == 0 || skip);

	fprintf(out, "%sok %d %s #%s", good ? "" : "not ", number, test->name, skip ? " SKIP" : "");
	if (ending->timeout)
		fprintf(out, " TIMEOUT");
	else if (WIFSIGNALED(ending->status))
		fprintf(out, " signal=%d", WTERMSIG(ending->status));
	else
		fprintf(out, " exit=%d", code);
	fprintf(out, " seconds=%.3f\n", ending->seconds);
	fflush(out);
}

static void parse_test(char *line, struct ktest *test)
{
	char *rest = line;
	char *word = strsep(&rest, " ");
	int count = 0;

	test->timeout_s = strtod(word, NULL);
	test->name = rest ? strdup(rest) : NULL;
	while (count < MAX_WORDS - 1 && (word = strsep(&rest, " ")))
		test->words[count++] = word;
	die_if(test->timeout_s <= 0 || !count || rest, "the list has a line that is no test");
	die_if(!test->name || asprintf(&test->words[0], TESTS_FOLDER "%s", test->words[0]) < 0, "no memory");
}

static int read_list(const char *path, struct ktest *tests)
{
	FILE *list = fopen(path, "re");
	char *line = NULL;
	size_t room = 0;
	int count = 0;

	die_if(!list, "open %s", path);
	while (getline(&line, &room, list) > 0) {
		die_if(count == MAX_TESTS, "more than %d tests", MAX_TESTS);
		line[strcspn(line, "\n")] = 0;
		parse_test(line, &tests[count++]);
		line = NULL;	/* The words stay in it. */
		room = 0;
	}
	fclose(list);
	die_if(!count, "%s names no test", path);
	return count;
}

int main(int argc, char **argv)
{
	static struct ktest tests[MAX_TESTS];
	int count, i;

	die_if(argc != 5 || strcmp(argv[1], "--list") || strcmp(argv[3], "--out"),
	       "usage: %s --list FILE --out FILE", argv[0]);
	count = read_list(argv[2], tests);
	out = fopen(argv[4], "we");
	die_if(!out, "open %s", argv[4]);
	kmsg_fd = open(KERNEL_LOG, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	die_if(kmsg_fd < 0 || lseek(kmsg_fd, 0, SEEK_END) < 0, "open " KERNEL_LOG);
	die_if(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
	fprintf(out, "KTAP version 1\n1..%d\n", count);
	for (i = 0; i < count; i++) {
		struct ending ending;

		fprintf(out, "# %d begin %s\n", i + 1, tests[i].name);
		fflush(out);
		ending = run(&tests[i], i + 1);
		forward_kernel_log(i + 1);
		say_ending(i + 1, &tests[i], &ending);
	}
	fprintf(out, "# end %d\n", count);
	die_if(fclose(out), "write to %s", argv[4]);
	return 0;
}
