"""The rule for a retry, taken out of each patch, compiled, and run through every order of events.

The rule is C that needs nothing of the kernel but a lock: what ``kvm_mmu_notifier_invalidate_range_start()`` and
``_end()`` do with count, sequence and range, and ``mmu_notifier_retry_hva()``. The model lets two invalidations, of
any ranges of a few pages, begin and end in every order, and at every point lets a fault of every page sample the
sequence, read its host PTE, and ask. The truth is known, so each answer is right, unsafe (maps a page that is or was
being invalidated) or needless (waits for an invalidation of other pages). What this cannot show is what is not in the
rule: prefetch, and where and with which arguments the rule is asked.
"""

import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.kernel.patch import apply, read_series, revert

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "patches"
HEADER, MAIN = "include/linux/kvm_host.h", "virt/kvm/kvm_main.c"

MODEL = r"""
#include <stdio.h>
#include <string.h>
#define PAGE_SIZE 4096ul
#define PAGES 6
#define ULONG_MAX (~0ul)
#define likely(x) (x)
#define unlikely(x) (x)
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#define smp_rmb() do { } while (0)
#define smp_wmb() do { } while (0)
#define lockdep_assert_held(lock) do { } while (0)
struct kvm {
	unsigned long mmu_notifier_seq;
	long mmu_notifier_count;
	unsigned long mmu_notifier_range_start, mmu_notifier_range_end;
};
struct mmu_notifier_range { unsigned long start, end; };

static int mmu_notifier_retry(struct kvm *kvm, unsigned long mmu_seq);
@FUNCTIONS@
static void range_start(struct kvm *kvm, const struct mmu_notifier_range *range)
{
@START@
}
static void range_end(struct kvm *kvm)
{
@END@
}

/* A, B: an invalidation begins; a, b: it ends. Every order in which each ends after it began. */
static const char *const orders[] = { "Aa", "AaBb", "ABab", "ABba", "BAab", "BAba", "BbAa" };

struct count { unsigned long asked, unsafe, needless, needless_alone; };

static void one(const char *order, const struct mmu_notifier_range *two, struct count *count)
{
	int events = strlen(order);

	for (int from = 0; from <= events; from++) {	/* the fault samples and reads its PTE before event `from` */
		struct kvm kvm = { .mmu_notifier_seq = 7 };
		unsigned long seq = kvm.mmu_notifier_seq;
		int during[2] = { 0, 0 }, ended[2] = { 0, 0 }, any_end = 0, overlapped = 0;

		for (int now = 0; now <= events; now++) {	/* and asks before event `now` */
			if (now == from) {
				seq = kvm.mmu_notifier_seq;
				ended[0] = ended[1] = any_end = 0;
			}
			for (unsigned long page = 0; now >= from && page < PAGES; page++) {
				unsigned long hva = (1000 + page) * PAGE_SIZE;
				int needed = 0;

				for (int i = 0; i < 2; i++)
					if ((during[i] || ended[i]) && two[i].start <= hva && hva < two[i].end)
						needed = 1;
				int says = !!ASK(&kvm, seq, hva);

				count->asked++;
				count->unsafe += needed && !says;
				/* A completed invalidation makes everybody retry, in all versions: not counted. */
				count->needless += says && !needed && !any_end;
				count->needless_alone += says && !needed && !any_end && !overlapped;
			}
			if (now == events)
				break;
			int which = (order[now] | 32) == 'b';

			if (order[now] < 'a') {
				range_start(&kvm, &two[which]);
				during[which] = 1;
				overlapped |= during[!which];
			} else {
				range_end(&kvm);
				during[which] = 0;
				ended[which] = any_end = 1;
				overlapped &= during[!which];
			}
		}
	}
}

int main(void)
{
	struct count count = { 0 };

	for (unsigned int o = 0; o < sizeof(orders) / sizeof(*orders); o++)
		for (int a = 0; a < PAGES; a++)
			for (int b = a + 1; b <= PAGES; b++)
				for (int c = 0; c < PAGES; c++)
					for (int d = c + 1; d <= PAGES; d++) {
						const struct mmu_notifier_range two[2] = {
							{ (1000 + a) * PAGE_SIZE, (1000 + b) * PAGE_SIZE },
							{ (1000 + c) * PAGE_SIZE, (1000 + d) * PAGE_SIZE },
						};

						one(orders[o], two, &count);
					}
	printf("%lu %lu %lu %lu\n", count.asked, count.unsafe, count.needless, count.needless_alone);
	return 0;
}
"""


@dataclass(frozen=True)
class Verdict:
    """Counts of answers over all orders, ranges, and pages."""

    asked: int
    unsafe: int  # says "map" though the page is being invalidated, or was since the fault read its PTE
    needless: int  # says "retry" though only other pages are being invalidated
    needless_alone: int  # ... with no more than one invalidation in progress since the last quiet moment


def body(text: str, name: str, begin: str, end: str) -> str:
    """Lines of function ``name`` from the one with ``begin`` to the one before ``end``."""
    start = text.index(begin, text.index(f"static int {name}(" if "range_start" in name else f"static void {name}("))
    return text[start : text.index(end, start)]


def rule(header: str, main: str) -> str:
    """The model's source for the two patched files."""
    functions = re.findall(r"^static inline int mmu_notifier_retry\w*\(.*?^}\n", header, re.M | re.S)
    source = MODEL.replace("@FUNCTIONS@", "\n".join(functions).replace("static inline", "static"))
    start = body(main, "kvm_mmu_notifier_invalidate_range_start", "kvm->mmu_notifier_count++;", "\tneed_tlb_flush = ")
    end = body(main, "kvm_mmu_notifier_invalidate_range_end", "kvm->mmu_notifier_seq++;", "\tspin_unlock(")
    source = source.replace("@START@", start).replace("@END@", end)
    asks = "mmu_notifier_retry_hva(kvm, seq, hva)" if len(functions) == 2 else "mmu_notifier_retry(kvm, seq)"
    return f"#define ASK(kvm, seq, hva) {asks}\n{source}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    with tarfile.open(ROOT / "tests" / "data" / "mail" / "tree-5.10.262.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(tree: Path, folder: Path, name: str | None) -> Verdict:
    """Compile and run the rule of the pristine tree, or of the tree with one patch."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    applied = None
    if name:
        (patch,) = read_series([PATCHES / f"{name}.patch"])
        there = tuple(diff for diff in patch.diffs if not diff.path.startswith("arch/powerpc/"))
        applied = apply([replace(patch, files=tuple(diff.path for diff in there), diffs=there)], tree)
    try:
        source = rule((tree / HEADER).read_text(), (tree / MAIN).read_text())
    finally:
        if applied:
            revert(applied)
    (folder / "model.c").write_text(source)
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wno-unused-function"]
    subprocess.run(["gcc", *flags, "-o", folder / "model", folder / "model.c"], check=True)
    output = subprocess.run([folder / "model"], check=True, capture_output=True, text=True).stdout
    return Verdict(*(int(number) for number in output.split()))


@pytest.fixture(scope="module")
def base(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    return run(tree, tmp_path_factory.mktemp("base"), None)


@pytest.fixture(scope="module")
def right(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    return run(tree, tmp_path_factory.mktemp("right"), "hva-retry/union-noprefetch")


def test_the_pristine_rule_is_safe_and_waits_for_everything(base: Verdict) -> None:
    assert base.asked > 100_000
    assert base.unsafe == 0
    assert base.needless > base.needless_alone > 0


def test_v1_waits_for_other_pages_only_when_invalidations_overlap(tree: Path, tmp_path: Path, base: Verdict) -> None:
    v1 = run(tree, tmp_path, "hva-retry/v1")
    assert (v1.unsafe, v1.needless_alone) == (0, 0)
    assert 0 < v1.needless < base.needless


def test_the_review_s_remarks_change_no_answer(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    assert run(tree, tmp_path, "hva-retry/v1-review") == run(tree, tmp_path / "v1", "hva-retry/v1")


def test_the_union_waits_less_than_v1_and_is_as_safe(tree: Path, tmp_path: Path, right: Verdict) -> None:
    (tmp_path / "v1").mkdir()
    union, v1 = run(tree, tmp_path, "hva-retry/union"), run(tree, tmp_path / "v1", "hva-retry/v1")
    assert union == right
    assert (union.unsafe, union.needless_alone) == (0, 0)
    assert 0 < union.needless < v1.needless


UNSAFE = (
    "never-retry",
    "ignore-count",
    "ignore-seq",
    "edge-start",
    "edge-end",
    "overwrite",
    "reset-early",
    "union-max-start",
    "union-min-end",
    "count-above-one",
)
NEEDLESS = ("edge-end-wide", "range-kept")


@pytest.mark.parametrize("name", UNSAFE)
def test_a_mutant_of_the_rule_maps_what_it_must_not(tree: Path, tmp_path: Path, name: str) -> None:
    assert run(tree, tmp_path, f"mutants/{name}").unsafe > 0


@pytest.mark.parametrize("name", NEEDLESS)
def test_a_mutant_on_the_safe_side_only_waits_too_often(tree: Path, tmp_path: Path, right: Verdict, name: str) -> None:
    mutant = run(tree, tmp_path, f"mutants/{name}")
    assert mutant.unsafe == 0
    assert mutant.needless > right.needless
    assert mutant.needless_alone > 0


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (PATCHES / "mutants").glob("*.patch")} - {*UNSAFE, *NEEDLESS})
)
def test_the_other_mutants_have_the_right_rule(tree: Path, tmp_path: Path, right: Verdict, name: str) -> None:
    """What is wrong with them is where the rule is asked, and with what; only the kernel can show it."""
    assert run(tree, tmp_path, f"mutants/{name}") == right
