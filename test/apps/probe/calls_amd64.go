package main

// Numbers of system calls that package syscall does not know.
const (
	sysBPF, sysPerfEventOpen, sysUserfaultfd, sysOpenByHandleAt = 321, 298, 323, 304
	sysKeyctl, sysAddKey, sysRequestKey                         = 250, 248, 249
	sysKexecLoad, sysKexecFileLoad                              = 246, 320
	sysInitModule, sysFinitModule, sysDeleteModule              = 175, 313, 176
	sysSetns, sysKcmp, sysFanotifyInit, sysMovePages            = 308, 312, 300, 279
	sysProcessVMReadv, sysClockSettime                          = 310, 227
)
