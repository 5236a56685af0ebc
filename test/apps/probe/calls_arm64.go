package main

// Numbers of system calls that package syscall does not know.
const (
	sysBPF, sysPerfEventOpen, sysUserfaultfd, sysOpenByHandleAt = 280, 241, 282, 265
	sysKeyctl, sysAddKey, sysRequestKey                         = 219, 217, 218
	sysKexecLoad, sysKexecFileLoad                              = 104, 294
	sysInitModule, sysFinitModule, sysDeleteModule              = 105, 273, 106
	sysSetns, sysKcmp, sysFanotifyInit, sysMovePages            = 268, 272, 262, 239
	sysProcessVMReadv, sysClockSettime                          = 270, 112
)
