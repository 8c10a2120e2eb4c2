#include "kvm.h"

int kvm_fault(int seq)
{
	return mmu_notifier_retry(seq);
}
