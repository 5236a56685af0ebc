#include "textflag.h"

// func clone(args unsafe.Pointer, size uintptr, calls unsafe.Pointer) int
//
// The child has nothing of Go: only R19, the call it is at. The kernel keeps all registers
// over a system call but R0 (the result).
TEXT ·clone(SB), NOSPLIT, $0-32
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD calls+16(FP), R19
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, next
	MOVD R0, ret+24(FP)
	RET
next:
	MOVD 0(R19), R8 // number
	MOVD 8(R19), R0 // args
	MOVD 16(R19), R1
	MOVD 24(R19), R2
	MOVD 32(R19), R3
	MOVD 40(R19), R4
	MOVD 48(R19), R5
	SVC
	MOVD R0, 56(R19) // result
	MOVD 64(R19), R9 // min
	CMP  R9, R0
	BGE  good
	MOVD 72(R19), R9 // accept
	CMP  R9, R0
	BEQ  good
	MOVD 80(R19), R9
	CMP  R9, R0
	BEQ  good
	MOVD $94, R8 // exit_group
	MOVD $127, R0
	SVC
	UNDEF
good:
	MOVD 88(R19), R9 // fork
	CBZ  R9, on
	CBZ  R0, on
	MOVD $94, R8 // exit_group: the new process goes on alone
	MOVD $0, R0
	SVC
	UNDEF
on:
	ADD  $96, R19
	B    next
