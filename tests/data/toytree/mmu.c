#include "kvm.h"

int mmu_notifier_retry(int seq)
{
	if (seq)
		return 1;
	return 0;
}
