package filter

import (
	"encoding/binary"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func policy(calls ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: calls}
}

func allow(names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow}
}

// run has a machine of its own work off the filter, as the kernel would.
func run(t *testing.T, code []unix.SockFilter, arch, number uint32, args ...uint64) uint32 {
	t.Helper()
	var raw []bpf.Instruction
	for _, c := range code {
		i := bpf.RawInstruction{Op: c.Code, Jt: c.Jt, Jf: c.Jf, K: c.K}.Disassemble()
		raw = append(raw, i)
	}
	vm, err := bpf.NewVM(raw)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's struct seccomp_data; this machine reads words of network order.
	data := binary.BigEndian.AppendUint32(nil, number)
	data = binary.BigEndian.AppendUint32(data, arch)
	data = append(data, make([]byte, 8)...)
	for i := range 6 {
		var a uint64
		if i < len(args) {
			a = args[i]
		}
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	result, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(result)
}

const (
	allowed = unix.SECCOMP_RET_ALLOW
	denied  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	unknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	killed  = unix.SECCOMP_RET_KILL_PROCESS
	amd64   = unix.AUDIT_ARCH_X86_64
)

func TestCompile(t *testing.T) {
	enosys := uint(unix.ENOSYS)
	code, err := Compile(policy(
		allow("read", "write", "close", "openat", "getpid", "seccomp"),
		specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.CLONE_NEWUSER, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
		specs.LinuxSyscall{Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 8, Op: specs.OpEqualTo}}},
		specs.LinuxSyscall{Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 1<<32 - 1, Op: specs.OpEqualTo}}},
		specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: 1<<32 - 1, ValueTwo: unix.AF_INET, Op: specs.OpMaskedEqual}, {Index: 2, Value: 6, Op: specs.OpEqualTo},
		}},
	))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name         string
		arch, number uint32
		args         []uint64
		want         uint32
	}{
		{"the lowest", amd64, numbers["read"], nil, allowed},
		{"its neighbour", amd64, 2, nil, denied},
		{"one in the middle", amd64, numbers["getpid"], nil, allowed},
		{"one that is not named", amd64, unix.SYS_PTRACE, nil, denied},
		{"one with an error of its own", amd64, numbers["clone3"], nil, unknown},
		{"one newer than the policy", amd64, numbers["clone3"] + 1, nil, unknown},
		{"one of another table", unix.AUDIT_ARCH_I386, numbers["read"], nil, killed},
		{"one of the x32 table", amd64, x32 | numbers["read"], nil, killed},
		{"flags that are allowed", amd64, numbers["clone"], []uint64{unix.CLONE_VM}, allowed},
		{"flags that are not", amd64, numbers["clone"], []uint64{unix.CLONE_VM | unix.CLONE_NEWUSER}, denied},
		{"the first alternative", amd64, numbers["personality"], []uint64{8}, allowed},
		{"the second alternative", amd64, numbers["personality"], []uint64{1<<32 - 1}, allowed},
		{"no alternative", amd64, numbers["personality"], []uint64{9}, denied},
		{"a high half that counts", amd64, numbers["personality"], []uint64{1<<32 | 8}, denied},
		{"both arguments", amd64, numbers["socket"], []uint64{unix.AF_INET, 1, 6}, allowed},
		{"a high half that does not count", amd64, numbers["socket"], []uint64{1<<32 | unix.AF_INET, 1, 6}, allowed},
		{"one of two arguments", amd64, numbers["socket"], []uint64{unix.AF_INET, 1, 7}, denied},
		{"the other of two arguments", amd64, numbers["socket"], []uint64{unix.AF_ALG, 1, 6}, denied},
	}
	for _, tt := range tests {
		if got := run(t, code, tt.arch, tt.number, tt.args...); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	less := specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: 38, Op: specs.OpLessThan}}}
	trace := specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActTrace}
	two := policy(allow("read"))
	two.Architectures = append(two.Architectures, specs.ArchX86)
	tests := map[string]*specs.LinuxSeccomp{
		`no system call "raed"`: policy(allow("raed")), "SCMP_CMP_LT": policy(less), "SCMP_ACT_TRACE": policy(trace),
		"architectures": two, "names no call": policy(),
	}
	for want, p := range tests {
		if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q in it", err, want)
		}
	}
	if _, err := Compile(policy(allow("read", "mmap2"))); err != nil {
		t.Errorf("a call of 32-bit machines: %v", err)
	}
}
