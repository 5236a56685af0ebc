package filter

import (
	"fmt"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in the kernel's struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// arches are the values by which the kernel names the system call tables.
var arches = map[specs.Arch]uint32{specs.ArchX86_64: unix.AUDIT_ARCH_X86_64, specs.ArchAARCH64: unix.AUDIT_ARCH_AARCH64}

// x32 marks calls of the x32 table, which shares its name with that of x86-64.
const x32 = 0x40000000

// rule is what a filter does at one call: the first alternative that fits decides, else the
// filter's default does.
type rule struct {
	alternatives []alternative
}

type alternative struct {
	args   []specs.LinuxSeccompArg // all have to fit; none always does
	action uint32
}

// Compile gives the program of a policy for this machine's own table. Calls of another table
// end the process. Calls that are newer than the newest one of the policy fail with ENOSYS, as if the
// kernel were as old as the policy: programs then do without. Names of calls that this
// architecture does not have are left out, as long as Known has them.
func Compile(policy *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	if len(policy.Architectures) != 1 || arches[policy.Architectures[0]] == 0 {
		return nil, fmt.Errorf("seccomp: the architectures are %v: one of amd64 and arm64 is needed, on %s", policy.Architectures, runtime.GOARCH)
	}
	if len(policy.Flags) > 0 || policy.ListenerPath != "" {
		return nil, fmt.Errorf("seccomp: flags and listeners are not supported")
	}
	fallback, err := action(policy.DefaultAction, policy.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rules, err := collect(policy)
	if err != nil {
		return nil, err
	}
	p := &program{fallback: fallback}
	p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offArch, 0, 0)
	p.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, arches[policy.Architectures[0]], 1, 0)
	p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offNumber, 0, 0)
	if policy.Architectures[0] == specs.ArchX86_64 {
		p.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, x32, 0, 1)
		p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	}
	if err := p.tree(ranges(rules, fallback)); err != nil {
		return nil, err
	}
	p.conditions(rules)
	return p.code, nil
}

// collect sorts the rules by the calls they are for.
func collect(policy *specs.LinuxSeccomp) (map[uint32]*rule, error) {
	rules := map[uint32]*rule{}
	for _, s := range policy.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, a := range s.Args {
			if a.Index > 5 || a.Op != specs.OpEqualTo && a.Op != specs.OpMaskedEqual {
				return nil, fmt.Errorf("seccomp: %v: comparing argument %d by %s is not supported", s.Names, a.Index, a.Op)
			}
		}
		for _, name := range s.Names {
			number, ok := numbers[name]
			if !ok {
				if !foreign[name] {
					return nil, fmt.Errorf("seccomp: there is no system call %q", name)
				}
				continue
			}
			if rules[number] == nil {
				rules[number] = &rule{}
			}
			rules[number].alternatives = append(rules[number].alternatives, alternative{s.Args, act})
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("seccomp: the policy names no call")
	}
	return rules, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		code := uint(unix.EPERM)
		if errno != nil {
			code = *errno
		}
		return unix.SECCOMP_RET_ERRNO | uint32(code)&unix.SECCOMP_RET_DATA, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	}
	return 0, fmt.Errorf("seccomp: the action %s is not supported", a)
}

// span is a run of calls with the same fate.
type span struct {
	first  uint32
	action uint32
	rule   *rule // decides in place of action, if it looks at arguments
}

// always is the action of a rule that does not look at arguments.
func (r *rule) always() (uint32, bool) {
	if len(r.alternatives[0].args) == 0 {
		return r.alternatives[0].action, true
	}
	return 0, false
}

// ranges cuts the numbers into spans, from 0 up.
func ranges(rules map[uint32]*rule, fallback uint32) []span {
	var newest uint32
	for n := range rules {
		newest = max(newest, n)
	}
	var out []span
	add := func(s span) {
		if last := len(out) - 1; last >= 0 && s.rule == nil && out[last].rule == nil && out[last].action == s.action {
			return
		}
		out = append(out, s)
	}
	for n := range newest + 1 {
		r := rules[n]
		if r == nil {
			add(span{first: n, action: fallback})
		} else if act, ok := r.always(); ok {
			add(span{first: n, action: act})
		} else {
			add(span{first: n, rule: r})
		}
	}
	add(span{first: newest + 1, action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	return out
}

// program is the code in the making.
type program struct {
	code     []unix.SockFilter
	fallback uint32
	jumps    map[*rule][]int // jumps to conditions that are not placed yet
}

func (p *program) emit(code uint16, k uint32, jt, jf uint8) {
	p.code = append(p.code, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

func (p *program) ret(action uint32) { p.emit(unix.BPF_RET|unix.BPF_K, action, 0, 0) }

// tree finds the span of a number by halving.
func (p *program) tree(spans []span) error {
	if len(spans) == 1 {
		if r := spans[0].rule; r != nil {
			if p.jumps == nil {
				p.jumps = map[*rule][]int{}
			}
			p.jumps[r] = append(p.jumps[r], len(p.code))
			p.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, 0)
		} else {
			p.ret(spans[0].action)
		}
		return nil
	}
	mid := len(spans) / 2
	at := len(p.code)
	p.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, spans[mid].first, 0, 0)
	if err := p.tree(spans[:mid]); err != nil {
		return err
	}
	skip := len(p.code) - at - 1
	if skip > 255 {
		return fmt.Errorf("seccomp: the policy is too large: a jump over %d instructions", skip)
	}
	p.code[at].Jt = uint8(skip)
	return p.tree(spans[mid:])
}

// conditions places what looks at arguments, in the order of the numbers.
func (p *program) conditions(rules map[uint32]*rule) {
	var calls []uint32
	for n, r := range rules {
		if len(p.jumps[r]) > 0 {
			calls = append(calls, n)
		}
	}
	slices.Sort(calls)
	for _, n := range calls {
		r := rules[n]
		for _, at := range p.jumps[r] {
			p.code[at].K = uint32(len(p.code) - at - 1)
		}
		for _, a := range r.alternatives {
			p.alternative(a)
		}
		p.ret(p.fallback)
	}
}

// alternative returns the action if all arguments fit, else it falls through.
func (p *program) alternative(a alternative) {
	var misses []int // instructions whose false branch leads to the end
	for _, arg := range a.args {
		mask, value := ^uint64(0), arg.Value
		if arg.Op == specs.OpMaskedEqual {
			mask, value = arg.Value, arg.ValueTwo
		}
		base := uint32(offArgs + 8*arg.Index) // both architectures are little endian: the low word is first
		for word, offset := range []uint32{base, base + 4} {
			m, v := uint32(mask>>(32*word)), uint32(value>>(32*word))
			if m == 0 && v == 0 {
				continue
			}
			p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0)
			if m != ^uint32(0) {
				p.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, m, 0, 0)
			}
			misses = append(misses, len(p.code))
			p.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, v, 0, 0)
		}
	}
	p.ret(a.action)
	for _, at := range misses {
		p.code[at].Jf = uint8(len(p.code) - at - 1)
	}
}
