// SPDX-License-Identifier: GPL-2.0
/* Find the guest's mailbox, by the line that fault_bench says on the guest's console, and ask through it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "libstorm.h"

#define LOOK_US		20000
#define LINE_BYTES	512

/* Returns whether @line tells where the mailbox is; ends the VMM if it tells of an error. */
static bool parse(const char *line, unsigned long long *gpa, unsigned long long *nonce)
{
	const char *error = strstr(line, MAILBOX_ERROR);
	const char *found = strstr(line, "orch-bench: mailbox ");

	errno = 0;
	die_if(error, "fault_bench, in the guest: %s", error + strlen(MAILBOX_ERROR));
	return found && sscanf(found, MAILBOX_LINE, gpa, nonce) == 2;
}

/* Read what is new in the console's file, up to the end of a line that matters. */
static bool read_lines(int fd, char *line, size_t *used, unsigned long long *gpa, unsigned long long *nonce)
{
	char byte;

	while (read(fd, &byte, 1) == 1) {
		if (byte != '\n' && byte != '\r') {
			if (*used < LINE_BYTES - 1)
				line[(*used)++] = byte;
			continue;
		}
		line[*used] = 0;
		*used = 0;
		if (parse(line, gpa, nonce))
			return true;
	}
	return false;
}

/* Sleep a little; end the VMM if the guest has had @limit_s for its boot. */
static void look_again(const char *console, uint32_t limit_s)
{
	static struct timespec start;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!start.tv_sec)
		start = now;
	errno = 0;
	die_if(now.tv_sec - start.tv_sec > limit_s,
	       "fault_bench has not said in %s within %u s where its mailbox is: if the guest's last lines are those of a "
	       "boot, give it more time (guest_deadline_s; by hand, boot-seconds), if there are none, a serial console",
	       console, limit_s);
	sleep_us(LOOK_US);
}

struct mailbox *attach(const char *console, uint32_t limit_s)
{
	unsigned long long gpa = 0, nonce = 0;
	char line[LINE_BYTES];
	struct mailbox *box;
	size_t used = 0;
	int fd;

	while ((fd = open(console, O_RDONLY | O_CLOEXEC)) < 0)
		look_again(console, limit_s);
	while (!read_lines(fd, line, &used, &gpa, &nonce))
		look_again(console, limit_s);
	close(fd);
	errno = 0;
	die_if(!kvm_known(),
	       "the guest runs, yet %s, which was started with the library, has made no KVM call through libc's ioctl(): "
	       "if it is a script, start the VMM with exec", program_invocation_short_name);
	die_if(!guest_known(), "the guest runs, yet no memslot of the VMM's came by libc's ioctl()");
	box = (struct mailbox *)guest_hva(gpa, sizeof(*box));
	die_if(!box, "the guest's mailbox is at gpa %#llx, which no memslot covers", gpa);
	die_if(box->magic != MAILBOX_MAGIC || box->nonce != nonce, "the guest's mailbox is not at gpa %#llx", gpa);
	die_if(box->version != MAILBOX_VERSION || box->bytes != sizeof(*box),
	       "fault_bench in the guest speaks version %u of the mailbox, libstorm.so %u", box->version,
	       MAILBOX_VERSION);
	return box;
}

void ask(struct mailbox *box, enum mailbox_command command, uint32_t round)
{
	uint32_t asked = atomic_load(&box->asked) + 1;

	box->command = command;
	box->round = round;
	atomic_store(&box->asked, asked);
	while (atomic_load(&box->answered) != asked && !atomic_load(&box->failed))
		guest_wait();
	errno = 0;
	die_if(atomic_load(&box->failed), "fault_bench, in the guest: %.*s", (int)sizeof(box->reason) - 1, box->reason);
}
