package supervisor

import (
	"context"
	"errors"
	"os"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/disk"
)

// diskMB is how much the task may write; 0 is as much as there is.
func (t *task) diskMB() int {
	if t.req.Config.DiskMB > 0 {
		return t.req.Config.DiskMB
	}
	return t.sup.cfg.DiskMB
}

// makeDisk gives a persistent instance or a build a file system of its own size for what it
// writes.
func (t *task) makeDisk(ctx context.Context) error {
	size := int64(t.diskMB()) << 20
	if size == 0 {
		return nil
	}
	dir := t.sup.scratch(t.id)
	// What a killed supervisor left of it.
	if err := disk.Unmount(dir); err != nil {
		return err
	}
	// Half of the memory: who fills it is told that there is no room left, and is not ended for want of memory.
	fallback, err := disk.Mount(ctx, disk.Config{Dir: dir, Bytes: size, MemoryBytes: int64(t.req.MemoryMB) << 19})
	if err != nil {
		return leapcell.Wrap(leapcell.CodeStartFailed, err, "the disk for what the task writes could not be made: "+describe(err))
	}
	if fallback != nil {
		t.log.Warn("what the task writes is kept in its memory: no disk could be made", "error", fallback)
		t.event(nil, "what this task writes counts as its memory, half of it at most: the node could not make a disk (%v)", fallback)
	}
	return nil
}

// removeScratch removes what a task wrote, with its disk if it has one.
func (t *task) removeScratch() error {
	dir := t.sup.scratch(t.id)
	return errors.Join(disk.Unmount(dir), os.RemoveAll(dir))
}
