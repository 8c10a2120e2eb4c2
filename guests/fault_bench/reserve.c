// SPDX-License-Identifier: GPL-2.0
/*
 * Reserve guest-physically contiguous memory, from user space: take more than is needed, ask where each page lies,
 * move the pages of one contiguous run together, and give the rest back.
 *
 *	samples | frames | 2 MiB | faulting range | adjacent storm | 2 MiB | disjoint storm
 *
 * So placements mean for a Linux guest what they mean for the flat one, and a page's gpa and hva follow from its
 * index. The run starts at a multiple of 2 MiB, and so does the faulting range.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "fault_bench.h"

#define SLACK_BYTES	(8ull << 20)	/* the first try takes so much more than is needed; mostly it is enough */
#define LEAVE_BYTES	(16ull << 20)	/* and the second all but this, so that the guest's kernel can live */

struct frame {
	uint64_t gpa;
	uint64_t page;		/* where it is mapped, counted from the start of the pool */
};

struct pool {
	uint8_t *start;
	uint64_t bytes;
	int file;		/* -1: anonymous */
	struct frame *frames;	/* sorted by gpa */
};

static uint64_t meminfo_bytes(const char *format)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, format, &kib) == 1)
			break;
	}
	if (!kib)
		fail("nothing like '%s' in /proc/meminfo", format);
	fclose(file);
	return kib << 10;
}

/* Address space of @bytes at a multiple of 2 MiB. */
static uint8_t *address_space(uint64_t bytes)
{
	uint8_t *space = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (space == MAP_FAILED)
		fail("mmap of %llu bytes of address space: %s", (unsigned long long)bytes, strerror(errno));
	return (uint8_t *)ALIGN_UP((uint64_t)space, HUGE_BYTES);
}

static int by_gpa(const void *left, const void *right)
{
	uint64_t a = ((const struct frame *)left)->gpa, b = ((const struct frame *)right)->gpa;

	return (a > b) - (a < b);
}

/* Locked: nothing moves or takes a page until it is unlocked, for compaction is told to keep off (main.c). */
static void fill(struct pool *pool, enum mailbox_memory memory)
{
	int flags = memory == MEMORY_FILE ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	uint64_t pages = pool->bytes / PAGE_BYTES, i;
	uint64_t *gpas = malloc(pages * sizeof(*gpas));

	pool->frames = malloc(pages * sizeof(*pool->frames));
	if (!gpas || !pool->frames)
		fail("malloc for %llu pages", (unsigned long long)pages);
	pool->start = address_space(pool->bytes);
	pool->file = memory == MEMORY_FILE ? syscall(SYS_memfd_create, "fault_bench", 0) : -1;
	if (memory == MEMORY_FILE && (pool->file < 0 || ftruncate(pool->file, pool->bytes)))
		fail("memfd_create: %s", strerror(errno));
	if (mmap(pool->start, pool->bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, pool->file, 0) != pool->start)
		fail("mmap of %llu bytes: %s", (unsigned long long)pool->bytes, strerror(errno));
	madvise(pool->start, pool->bytes, memory == MEMORY_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (mlock(pool->start, pool->bytes))
		fail("mlock of %llu MiB: %s", (unsigned long long)(pool->bytes >> 20), strerror(errno));
	pagemap_read(pool->start, gpas, pages);
	for (i = 0; i < pages; i++)
		pool->frames[i] = (struct frame) { gpas[i], i };
	qsort(pool->frames, pages, sizeof(*pool->frames), by_gpa);
	free(gpas);
}

/* The first frame of a contiguous run of @bytes that starts at a multiple of 2 MiB. NULL: none; see @longest. */
static const struct frame *find_run(const struct pool *pool, uint64_t bytes, uint64_t *longest)
{
	uint64_t pages = pool->bytes / PAGE_BYTES, start = 0, i;

	*longest = 0;
	for (i = 0; i < pages; i++) {
		if (i == start || pool->frames[i].gpa != pool->frames[i - 1].gpa + PAGE_BYTES) {
			/* A new run starts with the next frame that is aligned. */
			start = pool->frames[i].gpa % HUGE_BYTES ? i + 1 : i;
			if (start > i)
				continue;
		}
		if ((i + 1 - start) * PAGE_BYTES > *longest)
			*longest = (i + 1 - start) * PAGE_BYTES;
		if (*longest >= bytes)
			return &pool->frames[start];
	}
	return NULL;
}

/* Bring @pages of the pool's pages, from @frame on, to @to: neighbours in guest memory become neighbours here. */
static void gather(const struct pool *pool, const struct frame *frame, uint64_t pages, uint8_t *to)
{
	uint64_t first = 0, next;

	for (; first < pages; first = next) {
		uint8_t *from = pool->start + frame[first].page * PAGE_BYTES, *want = to + first * PAGE_BYTES;
		uint64_t bytes;
		void *got;

		for (next = first + 1; next < pages && frame[next].page == frame[next - 1].page + 1; next++)
			;
		bytes = (next - first) * PAGE_BYTES;
		if (pool->file < 0)
			got = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, want);
		else
			got = mmap(want, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
				   pool->file, frame[first].page * PAGE_BYTES);
		if (got != want)
			fail("moving %llu bytes of the reserved memory: %s", (unsigned long long)bytes,
			     strerror(errno));
	}
}

/* Give back all but @kept bytes of memory from @start_gpa on, which have been mapped elsewhere. */
static void empty(struct pool *pool, uint64_t start_gpa, uint64_t kept)
{
	uint64_t pages = pool->bytes / PAGE_BYTES, i;

	munmap(pool->start, pool->bytes);
	for (i = 0; pool->file >= 0 && kept && i < pages; i++) {
		if (pool->frames[i].gpa - start_gpa < kept)
			continue;
		if (fallocate(pool->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      pool->frames[i].page * PAGE_BYTES, PAGE_BYTES))
			fail("fallocate(FALLOC_FL_PUNCH_HOLE): %s", strerror(errno));
	}
	if (pool->file >= 0)
		close(pool->file);
	free(pool->frames);
}

static void take_run(struct bench *bench, enum mailbox_memory memory, uint64_t bytes)
{
	uint64_t sizes[] = { bytes + SLACK_BYTES, meminfo_bytes("MemAvailable: %llu kB") };
	struct pool pool = { 0 };
	const struct frame *run = NULL;
	uint64_t longest = 0;
	int try;

	sizes[1] = sizes[1] > LEAVE_BYTES ? (sizes[1] - LEAVE_BYTES) / HUGE_BYTES * HUGE_BYTES : 0;
	for (try = 0; try < 2 && !run; try++) {
		pool.bytes = sizes[try] < sizes[1] ? sizes[try] : sizes[1];
		if (pool.bytes < bytes)
			fail("%llu MiB are needed in one piece, the guest has %llu to give: raise guest.ram_mib",
			     (unsigned long long)(bytes >> 20), (unsigned long long)(pool.bytes >> 20));
		fill(&pool, memory);
		run = find_run(&pool, bytes, &longest);
		if (!run)
			empty(&pool, 0, 0);
	}
	if (!run)
		fail("%llu MiB are needed in one piece, the largest of the guest's memory has %llu: raise guest.ram_mib",
		     (unsigned long long)(bytes >> 20), (unsigned long long)(longest >> 20));
	bench->area.start = address_space(bytes);
	bench->area.gpa = run->gpa;
	bench->area.bytes = bytes;
	gather(&pool, run, bytes / PAGE_BYTES, bench->area.start);
	empty(&pool, run->gpa, bytes);
}

/* khugepaged's and the fault path's doing: ask what came of it. */
static void check_huge(const struct bench *bench)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	unsigned long long kib = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "AnonHugePages: %llu kB", &kib) == 1)
			break;
	}
	if (file)
		fclose(file);
	if (kib << 10 < bench->params.mem_bytes)
		fail("--memory thp: of %llu KiB the guest's kernel gave %llu as huge pages",
		     (unsigned long long)(bench->params.mem_bytes >> 10), kib);
}

static void lay_out(struct bench *bench, const struct mailbox_trial *trial)
{
	const struct params *params = &bench->params;
	uint64_t samples = params->mem_bytes / params->stride_bytes * params->rounds * sizeof(struct rec_fault);
	uint64_t frames = trial->faults == FAULTS_BOTH ? params->mem_bytes / PAGE_BYTES * sizeof(uint64_t) : 0;
	uint64_t frames_at = ALIGN_UP(samples, PAGE_BYTES);
	uint64_t mem_at = ALIGN_UP(frames_at + frames, HUGE_BYTES) + HUGE_BYTES;
	uint64_t mem_end = mem_at + params->mem_bytes + trial->adjacent_bytes;
	uint64_t disjoint_at = trial->disjoint_bytes ? ALIGN_UP(mem_end, HUGE_BYTES) + HUGE_BYTES : mem_end;

	take_run(bench, trial->memory, ALIGN_UP(disjoint_at + trial->disjoint_bytes, HUGE_BYTES));
	bench->area.samples = bench->area.start;
	bench->area.frames = bench->area.start + frames_at;
	bench->area.mem = bench->area.start + mem_at;
	bench->area.disjoint = bench->area.start + disjoint_at;
}

void reserve(struct bench *bench)
{
	const struct mailbox_trial *trial = &bench->box->trial;
	const struct area *area = &bench->area;

	if (trial->memory == MEMORY_THP) {
		/* Below 512 MiB of memory the kernel turns them off (hugepage_init() in mm/huge_memory.c). */
		write_setting("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
		write_setting("/sys/kernel/mm/transparent_hugepage/defrag", "madvise");
	}
	lay_out(bench, trial);
	if (trial->memory == MEMORY_THP)
		check_huge(bench);
	bench->box->areas = (struct mailbox_areas) {
		.start_gpa = area->gpa, .bytes = area->bytes,
		.samples_gpa = area->gpa + (area->samples - area->start),
		.frames_gpa = area->gpa + (area->frames - area->start),
		.mem_gpa = area->gpa + (area->mem - area->start),
		.disjoint_gpa = area->gpa + (area->disjoint - area->start),
		.free_bytes = meminfo_bytes("MemFree: %llu kB"),
	};
}
