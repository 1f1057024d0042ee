# Settings for training on a CPU; use with `. tools/env.sh`.
#
# glibc's malloc maps every large tensor afresh and gives it back to the system as soon as it is freed, so each training step
# spends most of its time on page faults: several times slower. These two settings keep the memory in the process. The C
# library reads them when a program starts; setting them inside Python is too late.
export MALLOC_MMAP_MAX_=0
export MALLOC_TRIM_THRESHOLD_=8589934592
