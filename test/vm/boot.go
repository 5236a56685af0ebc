package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/leapcell/leapcell/test/vm/wire"
)

const qemu = "qemu-system-x86_64"

// machine is a virtual machine that has not started.
type machine struct {
	kernel    kernel
	initramfs string
	disk      string // "" for none
	cpus      int
	memoryMB  int
	kvm       bool
	log       string // gets the kernel's console
}

func (m machine) processor() string {
	if m.kvm {
		return "the processor's own virtualisation"
	}
	return "an emulated processor"
}

// arguments of the emulator. Its standard output is the channel.
func (m machine) arguments(console, append_ string) []string {
	accel := []string{"-accel", "kvm", "-cpu", "host"}
	if !m.kvm {
		// The cache of translated code is larger than usual: Nomad alone is a hundred megabytes.
		accel = []string{"-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"}
		append_ += fmt.Sprintf(" tsc_early_khz=%d", counterKHz()) // it has the counter of this machine
	}
	// No clock but the processor's counter: reading another one is slow when it is emulated.
	line := "console=ttyS0 quiet panic=-1 mitigations=off audit=0 tsc=reliable no_timer_check random.trust_cpu=on cgroup_no_v1=all " + append_
	args := append(accel,
		"-machine", "pc,hpet=off", "-nodefaults", "-display", "none", "-no-reboot",
		"-smp", fmt.Sprint(m.cpus), "-m", fmt.Sprint(m.memoryMB),
		"-kernel", m.kernel.image, "-initrd", m.initramfs, "-append", strings.TrimSpace(line),
		"-serial", console)
	if m.disk == "" {
		return args
	}
	return append(args,
		"-drive", "file="+m.disk+",format=raw,if=virtio,cache=unsafe",
		"-device", "virtio-serial-pci", "-chardev", "file,id=channel,path=/dev/stdout", "-device", "virtserialport,chardev=channel,name=leapcell")
}

// command is the emulator, which never outlives us.
func (m machine) command(ctx context.Context, console, append_ string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, qemu, m.arguments(console, append_)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// start starts cmd on a thread that lives as long as it: the kernel means the thread, not the
// process, by the death that ends a child.
func start(cmd *exec.Cmd) (wait func() error) {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	return func() error { return <-ended }
}

// kvmLimit is how long a machine with nothing to do may take: with a virtualisation that
// works it is there in a second, with one that only seems to be there it hangs: KVM by page tables
// alone (the module kvm_pvm), for machines that are virtual themselves, runs only kernels made for it.
const kvmLimit = 5 * time.Second

// kvmWorks tries the processor's own virtualisation.
func kvmWorks(ctx context.Context, m machine) bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, kvmLimit)
	defer cancel()
	m.kvm, m.disk, m.cpus, m.memoryMB = true, "", 1, 512
	cmd := m.command(ctx, "file:/dev/stdout", wire.ProbeArgument)
	var out strings.Builder
	cmd.Stdout = &out
	_ = start(cmd)() // its output says whether it worked
	return strings.Contains(out.String(), wire.ProbeText)
}

// boot runs the machine until it switches itself off, and hands what it says to r.
func (m machine) boot(ctx context.Context, r io.Writer) error {
	argument := ""
	if !m.kvm {
		argument = wire.EmulatedArgument
	}
	cmd := m.command(ctx, "file:"+m.log, argument)
	cmd.Stdout, cmd.Stderr = r, os.Stderr
	begin := time.Now()
	err := start(cmd)()
	if s := cmd.ProcessState; s != nil {
		// Tells a machine that stands still from one that was given no time.
		fmt.Printf("vm: it ran %s and had %s of processor time\n", time.Since(begin).Round(time.Second), (s.UserTime() + s.SystemTime()).Round(time.Second))
	}
	if ctx.Err() != nil {
		return errors.Join(fmt.Errorf("the virtual machine was switched off: %w", context.Cause(ctx)), tail(m.log))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", qemu, err), tail(m.log))
	}
	return nil
}

// tail is the end of a log as an error.
func tail(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return errors.New("its console says:\n  " + strings.Join(lines[max(0, len(lines)-12):], "\n  "))
}
