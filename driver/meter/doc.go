// Package meter keeps what a task is charged for in a page of memory that is a file at the
// same time. The gate counts by adding to words of that page: no system call on the way of a
// request, and a supervisor that is killed with -9 in the next instant has lost nothing,
// because the page belongs to the kernel and not to the process. Whoever takes the task over
// maps the same file and counts on; two processes may do so at once, as additions are atomic.
//
// Pages live on a tmpfs: on a disk a write to a mapped page may have to wait for the disk, and
// on a full one it may kill the process. What must outlive a reboot is written elsewhere, by
// the supervisor.
package meter
