#include "textflag.h"

// func clone(args unsafe.Pointer, size uintptr, calls unsafe.Pointer) int
//
// The child has nothing of Go: only R12, the call it is at. The kernel keeps all registers
// over a system call but AX (the result), CX and R11.
TEXT ·clone(SB), NOSPLIT, $0-32
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ calls+16(FP), R12
	MOVL $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JZ   next
	MOVQ AX, ret+24(FP)
	RET
next:
	MOVQ 0(R12), AX // number
	MOVQ 8(R12), DI // args
	MOVQ 16(R12), SI
	MOVQ 24(R12), DX
	MOVQ 32(R12), R10
	MOVQ 40(R12), R8
	MOVQ 48(R12), R9
	SYSCALL
	MOVQ AX, 56(R12) // result
	CMPQ AX, 64(R12) // min
	JGE  good
	CMPQ AX, 72(R12) // accept
	JEQ  good
	CMPQ AX, 80(R12)
	JEQ  good
	MOVL $231, AX // exit_group
	MOVL $127, DI
	SYSCALL
	INT  $3
good:
	CMPQ 88(R12), $0 // fork
	JEQ  on
	TESTQ AX, AX
	JEQ  on
	MOVL $231, AX // exit_group: the new process goes on alone
	XORL DI, DI
	SYSCALL
	INT  $3
on:
	ADDQ $96, R12
	JMP  next
