package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func swapOn(name *byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0)
	return errno
}
