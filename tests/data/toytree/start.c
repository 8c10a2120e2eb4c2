int kvm_fault(int seq);

const char version[] = STAMP;

void start(void)
{
	kvm_fault(version[0]);
	for (;;)
		;
}
