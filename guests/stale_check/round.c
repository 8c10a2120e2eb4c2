// SPDX-License-Identifier: GPL-2.0
/* One round: tag the pages, start the invalidation, preempt it with a fault, and look at what is left afterwards. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "stale_check.h"

#define PEEK_OFFSET	0x800u		/* in the page of the guest's code, behind fault_vmm's */

/* Each may preempt the ones below it; the first invalidator is SCHED_OTHER. */
#define VCPU_PRIORITY	2
#define SECOND_PRIORITY	1

/* Rounds start on a grid, 1 ms behind a tick (HZ=250), so that no tick falls between the post and the kick. */
#define GRID_NS		8000000ull
#define GRID_OFFSET_NS	1000000ull


static struct kvm_run *kicked;

static void on_kick(int signal)
{
	kicked->immediate_exit = 1;
}

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

uint64_t to_ns(const struct check *check, uint64_t cycles)
{
	return (unsigned __int128)cycles * 1000000000u / check->vm.tsc_hz;
}

uint8_t *page_hva(const struct check *check, uint64_t page)
{
	return check->vm.mem + page * PAGE_BYTES;
}

/* The second invalidation's range: in the same memslot, in page-table pages of its own. */
static uint64_t second_page(uint32_t range_pages)
{
	return ALIGN_UP(RANGE_PAGE + range_pages + PAGES_BEHIND, HUGE_PAGES) + PAGES_BEFORE;
}

uint64_t slot_pages(uint32_t range_pages)
{
	return ALIGN_UP(second_page(range_pages) + range_pages + PAGES_BEFORE, HUGE_PAGES);
}

void set_peek(struct check *check, uint64_t page)
{
	struct kvm_regs regs = { .rip = SYS_GPA + PEEK_OFFSET, .rflags = 0x2, .rsp = check->vm.vcpus[0].task.stack_gva,
				 .rbx = MEM_GPA + page * PAGE_BYTES };

	die_if(ioctl(check->vm.vcpus[0].fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Enter the guest once: 0 if it ended its read, EINTR if it was kicked, EFAULT if there is nothing at that hva. */
static int enter_once(struct check *check)
{
	struct vcpu *vcpu = &check->vm.vcpus[0];
	int error = ioctl(vcpu->fd, KVM_RUN, 0) ? errno : 0;

	errno = 0;
	if (error == EINTR || error == EFAULT)
		return error;
	die_if(error, "KVM_RUN failed with error %d", error);
	if (vcpu->run->exit_reason != KVM_EXIT_IO || vcpu->run->io.port != DONE_PORT)
		die_of_unexpected_exit(&check->vm, vcpu);
	return 0;
}

int enter_until_done(struct check *check)
{
	int error;

	do {
		check->vm.vcpus[0].run->immediate_exit = 0;
		error = enter_once(check);
	} while (error == EINTR);
	return error;
}

uint64_t peek(struct check *check, uint64_t page)
{
	struct kvm_regs regs;

	set_peek(check, page);
	if (enter_until_done(check))
		return STALE_HOLE;
	die_if(ioctl(check->vm.vcpus[0].fd, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	return regs.rax;
}

void tag_pages(struct check *check, uint64_t first, uint64_t count, uint64_t tag)
{
	uint64_t page;

	for (page = first; page < first + count; page++)
		*(volatile uint64_t *)page_hva(check, page) = tag | page;
}

/* What the host writes says which round wrote it, also when a round is replayed alone. */
static uint64_t round_tag(uint16_t kind, uint16_t op, uint32_t round)
{
	return STALE_TAG | ((uint64_t)(op * 16 + kind) << 8 | (round & 0xff)) << STALE_TAG_ROUND_SHIFT;
}

struct exits {
	uint64_t guest;		/* all, without those for host interrupts */
	uint64_t fixed;		/* faults that installed a mapping */
};

static struct exits count_exits(struct check *check)
{
	static struct rec_counter counters[MAX_COUNTERS];
	struct exits found = { 0 };
	uint32_t i, count;

	for (i = 0; i < MAX_COUNTERS; i++)
		counters[i].before = 0;
	count = counters_read(&check->vm, counters, false);
	for (i = 0; i < count; i++) {
		if (!strcmp(counters[i].name, "exits"))
			found.guest += counters[i].before;
		if (!strcmp(counters[i].name, "irq_exits"))
			found.guest -= counters[i].before;
		if (!strcmp(counters[i].name, "pf_fixed"))
			found.fixed = counters[i].before;
	}
	return found;
}

struct timespec next_grid_point(void)
{
	struct timespec now;
	uint64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ns = now.tv_sec * 1000000000ull + now.tv_nsec;
	ns = (ns / GRID_NS + 1) * GRID_NS + GRID_OFFSET_NS;
	return (struct timespec) { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
}

static void set_kick(struct check *check, struct timespec when)
{
	struct itimerspec timer = { .it_value = when };

	die_if(timer_settime(check->kick, TIMER_ABSTIME, &timer, NULL), "timer_settime");
}

/* Enter the guest and say how it ended. Burnt CPU time tells a retry from a sleep for the mmap lock. */
static void fault(struct check *check, struct stale_round *out, uint64_t cpu_before)
{
	int error;

	out->enter_tsc = rdtsc_ordered();
	error = enter_once(check);
	out->leave_tsc = rdtsc_ordered();
	if (error == EINTR)
		out->flags = cpu_ns() - cpu_before > check->options->kick_us * 500ull ? STALE_BLOCKED : STALE_LATE;
	else
		out->flags = STALE_PASSED | (error == EFAULT ? STALE_FAULT_HOLE : 0);
	set_kick(check, (struct timespec) { 0 });
}

static uint64_t lead_tsc(const struct check *check, uint64_t from_tsc)
{
	return from_tsc + LEAD_NS * check->vm.tsc_hz / 1000000000;
}

static void post_second(struct check *check, const struct stale_case *this, const struct stale_round *out,
			struct timespec now)
{
	uint64_t pages = this->second == SECOND_IN_PROGRESS ? out->range_pages : SHORT_PAGES;

	check->second.wake = later(now, out->second_ns);
	check->second.spin_tsc = 0;
	invalidator_post(&check->second, STALE_OP_MADVISE,
			 page_hva(check, second_page(check->options->range_pages)), pages * PAGE_BYTES);
}

/* The fault preempts the invalidation (and a second one, which has preempted the first). */
static void duel(struct check *check, const struct stale_case *this, struct stale_round *out)
{
	struct timespec now;
	uint64_t cpu_before;

	sleep_until(next_grid_point());
	clock_gettime(CLOCK_MONOTONIC, &now);
	set_kick(check, later(now, out->wake_ns + check->options->kick_us * 1000ull));
	cpu_before = cpu_ns();
	out->post_tsc = rdtsc_ordered();
	check->first.spin_tsc = lead_tsc(check, out->post_tsc);
	invalidator_post(&check->first, out->op, page_hva(check, out->range_page), out->range_pages * PAGE_BYTES);
	if (this->second)
		post_second(check, this, out, now);
	sleep_until(later(now, out->wake_ns));
	fault(check, out, cpu_before);
	invalidator_wait(&check->first);
	out->start_tsc = check->first.start_tsc;
	out->end_tsc = check->first.end_tsc;
	if (this->second) {
		invalidator_wait(&check->second);
		out->second_start_tsc = check->second.start_tsc;
		out->second_end_tsc = check->second.end_tsc;
	}
}

/* The other way round: the vCPU gives up its priority, and the invalidator preempts the fault. */
static void straddle(struct check *check, struct stale_round *out)
{
	struct invalidator *invalidator = &check->second;
	struct exits before = count_exits(check), after;
	uint64_t cpu_before, enter_tsc;
	struct timespec now;

	sleep_until(next_grid_point());
	clock_gettime(CLOCK_MONOTONIC, &now);
	set_kick(check, later(now, out->wake_ns + check->options->kick_us * 1000ull));
	cpu_before = cpu_ns();
	out->post_tsc = rdtsc_ordered();
	enter_tsc = lead_tsc(check, out->post_tsc);
	invalidator->wake = later(now, out->wake_ns);
	invalidator->spin_tsc = 0;
	invalidator_post(invalidator, out->op, page_hva(check, out->range_page), out->range_pages * PAGE_BYTES);
	set_policy(0);
	while (rdtsc_ordered() < enter_tsc)
		;
	fault(check, out, cpu_before);
	set_policy(VCPU_PRIORITY);
	invalidator_wait(invalidator);
	out->start_tsc = invalidator->start_tsc;
	out->end_tsc = invalidator->end_tsc;
	if (out->flags & STALE_PASSED) {
		after = count_exits(check);
		out->exits = after.guest - before.guest;
		out->fixed = after.fixed - before.fixed;
	}
}

static void prepare(struct check *check, const struct stale_case *this, const struct stale_round *out)
{
	uint64_t tag = round_tag(out->kind, out->op, out->round);

	tag_pages(check, out->range_page - PAGES_BEFORE, PAGES_BEFORE + out->range_pages + PAGES_BEHIND, tag);
	if (this->second)
		tag_pages(check, second_page(check->options->range_pages), check->options->range_pages, tag);
	if (this->edge == FROM_FAR)
		tag_pages(check, out->fault_page, 1, tag);
	if (this->map_behind) {
		/* That read prefetches the page of the fault as well, which is to fault all the same. */
		peek(check, out->range_page + out->range_pages);
		die_if(madvise(page_hva(check, out->fault_page), PAGE_BYTES, MADV_DONTNEED), "madvise of a page");
		tag_pages(check, out->fault_page, 1, tag);
	}
}

void clean_up(struct check *check, const struct stale_round *out)
{
	invalidate_undo(out->op, page_hva(check, out->range_page), out->range_pages * PAGE_BYTES);
	/* Pages and SPTEs of the whole memslot: the next round finds nothing of this one. */
	die_if(madvise(check->vm.mem, check->vm.slot_bytes, MADV_DONTNEED), "madvise of the memslot");
}

static uint32_t near_page(const struct check *check, const struct stale_case *this, uint32_t pages)
{
	if (this->edge == FROM_A)
		return RANGE_PAGE;
	return this->edge == FROM_SECOND ? second_page(check->options->range_pages) + pages : RANGE_PAGE + pages;
}

void run_round(struct check *check, const struct stale_case *this, const struct stale_op *op, uint32_t round,
	       uint64_t wake_ns, uint64_t second_ns)
{
	uint32_t pages = this->is_short ? SHORT_PAGES : check->options->range_pages, i;
	uint32_t near = near_page(check, this, pages);
	uint32_t origin = this->edge == FROM_FAR ? second_page(check->options->range_pages) : near;
	struct stale_round *out = &check->rounds[check->nr_rounds++];

	die_if(check->nr_rounds > check->room, "more rounds than were counted");
	*out = (struct stale_round) {
		.round = round, .kind = this->kind, .op = op->op,
		.fault_page = origin + this->fault, .checked_page = near + this->checked,
		.nr_checked = this->nr_checked, .range_page = RANGE_PAGE, .range_pages = pages,
		.wake_ns = wake_ns, .second_ns = second_ns,
	};
	prepare(check, this, out);
	set_peek(check, out->fault_page);
	check->vm.vcpus[0].run->immediate_exit = 0;
	if (this->straddle)
		straddle(check, out);
	else
		duel(check, this, out);
	if (!(out->flags & STALE_PASSED))
		enter_until_done(check);
	for (i = 0; i < out->nr_checked; i++)
		out->found[i] = peek(check, out->checked_page + i);
	clean_up(check, out);
}

static void make_kick(struct check *check)
{
	struct sigaction action = { .sa_handler = on_kick };
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM, ._sigev_un._tid = syscall(SYS_gettid),
	};

	kicked = check->vm.vcpus[0].run;
	die_if(sigaction(SIGALRM, &action, NULL), "sigaction");
	die_if(timer_create(CLOCK_MONOTONIC, &event, &check->kick), "timer_create");
}

void check_create(struct check *check, const struct options *options)
{
	check->options = options;
	check->params = (struct params) {
		.vcpus = 1, .stride_bytes = PAGE_BYTES, .rounds = 1, .guest_huge = options->guest_huge,
		.mem_bytes = slot_pages(options->range_pages) * PAGE_BYTES, .seed = options->seed,
	};
	vm_create(&check->vm, &check->params);
	vcpu_warm(&check->vm, &check->vm.vcpus[0]);
	die_if(guest_end - guest_start > PEEK_OFFSET, "no room behind the guest's code");
	memcpy(check->vm.sys + PEEK_OFFSET, peek_start, peek_end - peek_start);
	check->room = options->replay ? 1 : options->rounds * stale_nr_cases() * stale_nr_ops();
	check->rounds = calloc(check->room, sizeof(*check->rounds));
	die_if(!check->rounds, "calloc");
	/* A real-time thread sleeps without slack; in a straddle the vCPU's is none. */
	prctl(PR_SET_TIMERSLACK, 1);
	make_kick(check);
	invalidator_start(&check->first, 0);
	invalidator_start(&check->second, SECOND_PRIORITY);
	set_policy(VCPU_PRIORITY);
}

void check_destroy(struct check *check)
{
	set_policy(0);
	invalidator_stop(&check->first);
	invalidator_stop(&check->second);
	timer_delete(check->kick);
}
