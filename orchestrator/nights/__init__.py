"""Many runs: the nightly job, the history of an experiment, two runs against each other, the export of one."""
