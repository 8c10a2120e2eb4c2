"""``make bench``: how long the tool's own work takes, without kernels and QEMU."""

from benchmarks import stages

stages.main()
