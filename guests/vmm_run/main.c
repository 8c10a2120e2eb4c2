// SPDX-License-Identifier: GPL-2.0
/*
 * vmm_run - start a VMM with libstorm.so in it, and say what came of it.
 *
 * Checks the trial's options and writes them into libstorm.so's control file, starts the VMM with its standard output
 * (the guest's serial console) in a file, passes on what it says on stderr, and waits. The library writes the
 * recording and ends the VMM; any other end is an error, and what is known of it is said last: the guest's last
 * lines, then the reason in one line.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "cpus.h"
#include "settings.h"

#define MAX_ARGV_BYTES	8192
#define MAX_WORDS	256
#define MAX_LINE	512
#define TAIL_BYTES	8192
#define TAIL_LINES	20
#define CONTROL		"/run/storm.control"
#define PANIC		"Kernel panic - not syncing: "

struct run {
	const char *preload;
	const char *argv_file;
	const char *control;
	char *words[MAX_WORDS];
	bool recorded;
	char last[MAX_LINE];	/* the VMM's last line on stderr */
};

static bool take_own(struct run *run, const char *name, const char *value)
{
	if (!strcmp(name, "preload"))
		run->preload = value;
	else if (!strcmp(name, "vmm-argv"))
		run->argv_file = value;
	else if (!strcmp(name, "control"))
		run->control = value;
	else
		return false;
	return true;
}

static void make_parent(const char *path)
{
	char folder[512];
	char *slash;

	snprintf(folder, sizeof(folder), "%s", path);
	slash = strrchr(folder, '/');
	if (!slash || slash == folder)
		return;
	*slash = 0;
	mkdir(folder, 0755);	/* what is wrong with it, opening the file will tell */
}

/* Options are `--name value`; those for the library go into its control file as they are. */
static void take_options(struct run *run, struct settings *settings, int argc, char **argv)
{
	char text[MAX_ARGV_BYTES];
	size_t used = 0;
	FILE *control;
	int i;

	for (i = 1; i < argc; i += 2) {
		errno = 0;
		die_if(strncmp(argv[i], "--", 2), "unexpected argument '%s'", argv[i]);
		die_if(i + 1 == argc, "%s wants a value", argv[i]);
		die_if(strchr(argv[i + 1], '\n'), "%s: no newline, please", argv[i]);
		if (take_own(run, argv[i] + 2, argv[i + 1]))
			continue;
		die_if(!settings_take(settings, argv[i] + 2, argv[i + 1]), "there is no option '%s'", argv[i]);
		used += snprintf(text + used, sizeof(text) - used, "%s %s\n", argv[i] + 2, argv[i + 1]);
		die_if(used >= sizeof(text), "the options take more than %zu bytes", sizeof(text));
	}
	settings_check(settings);
	die_if(!run->preload || !run->argv_file, "--preload FILE and --vmm-argv FILE are needed");
	make_parent(run->control);
	control = fopen(run->control, "we");
	die_if(!control, "open %s", run->control);
	die_if(fwrite(text, 1, used, control) != used || fclose(control), "write of %s", run->control);
}

static void read_words(struct run *run)
{
	static char text[MAX_ARGV_BYTES];
	int fd = open(run->argv_file, O_RDONLY | O_CLOEXEC), count = 0;
	ssize_t bytes, offset = 0;

	die_if(fd < 0, "open %s, the VMM's command line", run->argv_file);
	bytes = read(fd, text, sizeof(text));
	close(fd);
	errno = 0;
	die_if(bytes <= 0 || bytes == sizeof(text) || text[bytes - 1],
	       "%s does not hold NUL-terminated words", run->argv_file);
	for (; offset < bytes; offset += strlen(text + offset) + 1) {
		die_if(count == MAX_WORDS - 1, "%s holds more than %d words", run->argv_file, MAX_WORDS - 1);
		run->words[count++] = text + offset;
	}
}

/* Into a static program nothing can be preloaded, and nothing would say so. */
static void check_vmm(const struct run *run)
{
	int fd = open(run->words[0], O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr header;
	bool dynamic = false;
	Elf64_Phdr segment;
	int i;

	die_if(fd < 0, "the VMM %s", run->words[0]);
	die_if(access(run->words[0], X_OK), "the VMM %s", run->words[0]);
	die_if(access(run->preload, R_OK), "the library %s", run->preload);
	if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || memcmp(header.e_ident, ELFMAG, SELFMAG)) {
		close(fd);
		return;		/* a script, whose interpreter passes the library on */
	}
	for (i = 0; i < header.e_phnum; i++) {
		if (pread(fd, &segment, sizeof(segment), header.e_phoff + i * sizeof(segment)) == sizeof(segment))
			dynamic |= segment.p_type == PT_INTERP;
	}
	close(fd);
	errno = 0;
	die_if(!dynamic, "the VMM %s is statically linked: no library can be preloaded into it", run->words[0]);
}

static void exec_vmm(const struct run *run, const char *console, int stderr_fd)
{
	int input = open("/dev/null", O_RDONLY);
	int output = open(console, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(stderr_fd, STDERR_FILENO);
	die_if(input < 0 || output < 0, "open %s", input < 0 ? "/dev/null" : console);
	dup2(input, STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	close(input);
	close(output);
	setenv("LD_PRELOAD", run->preload, 1);
	setenv(SETTINGS_ENV, run->control, 1);
	execv(run->words[0], run->words);
	die("exec of the VMM %s", run->words[0]);
}

static void take_line(struct run *run, const char *line)
{
	if (!strcmp(line, SETTINGS_RECORDED)) {
		run->recorded = true;
		return;
	}
	fprintf(stderr, "%s\n", line);
	snprintf(run->last, sizeof(run->last), "%s", line);
}

/* Pass on lines until the VMM, and all that it started, has closed its stderr. */
static void pass_on(struct run *run, int fd)
{
	FILE *stream = fdopen(fd, "r");
	char line[MAX_LINE];

	die_if(!stream, "fdopen");
	while (fgets(line, sizeof(line), stream)) {
		line[strcspn(line, "\n")] = 0;
		take_line(run, line);
	}
	fclose(stream);
}

static char *skip_lines(char *text, size_t keep)
{
	char *at = text + strlen(text);

	for (; at > text; at--) {
		if (at[-1] == '\n' && at[0] && !keep--)
			break;
	}
	return at;
}

/* The last bytes of the guest's console. */
static char *read_console(const char *console)
{
	static char text[TAIL_BYTES + 1];
	FILE *file = fopen(console, "re");

	if (!file)
		return text;
	if (!fseek(file, 0, SEEK_END))
		fseek(file, ftell(file) > TAIL_BYTES ? -TAIL_BYTES : -ftell(file), SEEK_END);
	text[fread(text, 1, TAIL_BYTES, file)] = 0;
	fclose(file);
	return text;
}

/*
 * Why the guest came to its end, by its own words: its kernel's, or fault_bench's, which libstorm.so need not have
 * read before the guest was gone. Of both the first, since one brings the other about. False if there are none.
 */
static bool find_reason(const char *text, char *reason, size_t bytes)
{
	const char *panic = strstr(text, PANIC), *error = strstr(text, MAILBOX_ERROR);

	if (panic && (!error || panic < error))
		snprintf(reason, bytes, "the guest's kernel panicked: %s", panic + strlen(PANIC));
	else if (error)
		snprintf(reason, bytes, "fault_bench, in the guest: %s", error + strlen(MAILBOX_ERROR));
	reason[strcspn(reason, "\r\n")] = 0;
	return panic || error;
}

/* Of a signal: libstorm.so calls what the VMM's own filter of system calls may not know. */
static const char *why_killed(int signal)
{
	return signal == SIGSYS ? " (SIGSYS: a system call that its sandbox does not allow, in libstorm.so perhaps: "
				  "switch the sandbox off)" : "";
}

/* The reason stands in the last line: it is what the trial's result shows. */
static int explain(const struct run *run, const char *console, int status)
{
	const char *when = run->recorded ? "after the recording was complete" : "before the recording was complete";
	char *text = read_console(console), reason[MAX_LINE] = "", *line;
	bool known = find_reason(text, reason, sizeof(reason));

	for (line = strtok(skip_lines(text, TAIL_LINES), "\r\n"); line; line = strtok(NULL, "\r\n"))
		fprintf(stderr, "guest: %s\n", line);
	if (known)
		fprintf(stderr, "%s\n", reason);
	else if (WIFSIGNALED(status))
		fprintf(stderr, "the VMM died of signal %d%s %s\n", WTERMSIG(status), why_killed(WTERMSIG(status)), when);
	else if (run->last[0])
		fprintf(stderr, "the VMM exited with %d %s: %s\n", WEXITSTATUS(status), when, run->last);
	else
		fprintf(stderr, "the VMM exited with %d %s, and said nothing\n", WEXITSTATUS(status), when);
	return 1;
}

int main(int argc, char **argv)
{
	static struct run run = { .control = CONTROL };
	struct settings settings = settings_defaults;
	int ends[2], status;
	pid_t vmm;

	cpus_init();
	take_options(&run, &settings, argc, argv);
	read_words(&run);
	check_vmm(&run);
	make_parent(settings.console);
	die_if(pipe2(ends, O_CLOEXEC), "pipe");
	vmm = fork();
	die_if(vmm < 0, "fork");
	if (!vmm)
		exec_vmm(&run, settings.console, ends[1]);
	close(ends[1]);
	pass_on(&run, ends[0]);
	die_if(waitpid(vmm, &status, 0) != vmm, "waitpid");
	if (run.recorded && WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	return explain(&run, settings.console, status);
}
