package supervisor

import (
	"context"
	"errors"
	"os"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/disk"
)

// makeDisk gives a persistent instance a file system of its own size for what it writes.
func (t *task) makeDisk(ctx context.Context) error {
	size := int64(t.sup.cfg.DiskMB) << 20
	if size == 0 {
		return nil
	}
	dir := t.sup.scratch(t.id)
	// What a killed supervisor left of it.
	if err := disk.Unmount(dir); err != nil {
		return err
	}
	fallback, err := disk.Mount(ctx, disk.Config{Dir: dir, Bytes: size, MemoryBytes: int64(t.req.MemoryMB) << 20})
	if err != nil {
		return leapcell.Wrap(leapcell.CodeStartFailed, err, "the disk for what the instance writes could not be made: "+describe(err))
	}
	if fallback != nil {
		t.log.Warn("what the instance writes is kept in its memory: no disk could be made", "error", fallback)
		t.event(nil, "what this instance writes counts as its memory: the node could not make a disk (%v)", fallback)
	}
	return nil
}

// removeScratch removes what a task wrote, with its disk if it has one.
func (t *task) removeScratch() error {
	dir := t.sup.scratch(t.id)
	return errors.Join(disk.Unmount(dir), os.RemoveAll(dir))
}
