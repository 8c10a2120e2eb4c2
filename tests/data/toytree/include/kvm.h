int mmu_notifier_retry(int seq);
