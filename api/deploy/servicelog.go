package deploy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
)

// maxLogLine is the longest line of an instance that is shown in one piece.
const maxLogLine = 64 << 10

// maxFollowed is how many outputs are followed at a time, of which an instance has two. Each holds a
// connection to the agent of Nomad, and all parts of the platform together have a hundred: see
// [leapcell.NomadCalls].
const maxFollowed = 48

// ServiceLogs streams what the instances of the live deployment write to stdout and stderr:
// the last tail lines of each instance that runs, and of the one that stopped last; when it
// follows, all that comes, of new instances too, until ctx ends. Close it.
func (d *Deployer) ServiceLogs(ctx context.Context, svc leapcell.Service, follow bool, tail int) (io.ReadCloser, error) {
	if svc.Live == "" {
		return nil, leapcell.Errorf(leapcell.CodeConflict, "the service %s has no live deployment: there is no log yet", svc.Name)
	}
	if follow && !d.followed.TryAcquire(2) {
		return nil, leapcell.Errorf(leapcell.CodeRateLimited, "too many logs are being followed: try again in a moment, or read what there is without following it")
	}
	if follow {
		d.followed.Release(2) // they are taken for as long as there is something to follow
	}
	allocs, index, err := d.cfg.Nomad.WaitAllocs(ctx, svc.Live, 0)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	m := &merger{d: d, task: svc.ID, out: in, seen: map[string]bool{}}
	go func() {
		in.CloseWithError(m.run(ctx, svc, allocs, index, follow, tail))
	}()
	return &logReader{out, cancel}, nil
}

// merger writes the lines of several streams to one.
type merger struct {
	d    *Deployer
	task string
	seen map[string]bool // allocations that are being read
	wait sync.WaitGroup

	mu  sync.Mutex
	out io.Writer
}

func (m *merger) run(ctx context.Context, svc leapcell.Service, allocs []*api.AllocationListStub, index uint64, follow bool, tail int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer m.wait.Wait()
	defer cancel()
	chosen := readable(allocs)
	for _, a := range allocs {
		m.seen[a.ID] = true
	}
	for _, a := range chosen {
		m.read(ctx, a, follow && nomad.Running(a), tail, len(chosen) > 1)
	}
	if !follow {
		m.wait.Wait()
		return nil
	}
	job := svc.Live
	for {
		next, newIndex, err := m.d.cfg.Nomad.WaitAllocs(ctx, job, index)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
				return err
			}
			if err := sleep(ctx, maxPause); err != nil {
				return err
			}
			continue
		}
		index = newIndex
		for _, a := range next {
			task := a.TaskStates[m.task]
			if !m.seen[a.ID] && task != nil && !task.StartedAt.IsZero() {
				m.seen[a.ID] = true
				m.read(ctx, a, nomad.Running(a), maxTail, true)
			}
		}
		now, err := m.d.cfg.Store.Service(ctx, svc.ID)
		if err != nil {
			return err
		}
		if now.Live != job { // a deployment or rollback went live: all of its instances are news
			job, index = now.Live, 0
		}
	}
}

// maxTail is so many lines that it is all of a log that begins now.
const maxTail = 10_000

// readable are the allocations whose logs are shown: those that run, and the last that
// stopped; the oldest first.
func readable(allocs []*api.AllocationListStub) []*api.AllocationListStub {
	sorted := slices.Clone(allocs)
	slices.SortFunc(sorted, func(a, b *api.AllocationListStub) int { return int(a.CreateTime - b.CreateTime) })
	var running, stopped []*api.AllocationListStub
	for _, a := range sorted {
		if nomad.Running(a) {
			running = append(running, a)
		} else {
			stopped = append(stopped, a)
		}
	}
	return append(stopped[max(0, len(stopped)-1):], running...)
}

// read begins to copy both streams of an allocation.
func (m *merger) read(ctx context.Context, a *api.AllocationListStub, follow bool, tail int, named bool) {
	prefix := ""
	if named {
		prefix = "[" + a.ID[:min(8, len(a.ID))] + "] "
	}
	for _, stream := range []string{"stdout", "stderr"} {
		m.wait.Go(func() {
			o := nomad.LogOptions{AllocID: a.ID, Task: m.task, Stream: stream}
			if err := m.copy(ctx, o, follow, tail, prefix); err != nil && ctx.Err() == nil {
				m.d.cfg.Log.Debug("instance log ended", "alloc", a.ID, "stream", stream, "err", err)
			}
		})
	}
}

// copy writes the last tail lines, then what follows from exactly there.
func (m *merger) copy(ctx context.Context, o nomad.LogOptions, follow bool, tail int, prefix string) error {
	last := make([]string, 0, 16)
	n, err := m.lines(ctx, o, func(line string) error {
		last = append(last, line)
		if len(last) > tail {
			last = last[1:]
		}
		return nil
	}, follow)
	if err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err
	}
	for _, line := range last {
		if err := m.write(prefix, line); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	if err := m.d.followed.Acquire(ctx, 1); err != nil {
		return err
	}
	defer m.d.followed.Release(1)
	o.Follow, o.Offset = true, n
	for ctx.Err() == nil {
		n, err := m.lines(ctx, o, func(line string) error { return m.write(prefix, line) }, false)
		o.Offset += n
		if errors.Is(err, io.ErrClosedPipe) {
			return err
		}
		_ = sleep(ctx, m.d.cfg.Pause) // the file is not there yet, or the agent was restarted
	}
	return nil
}

// lines calls each with the lines of a stream and gives the bytes they had. whole leaves
// out a last line that has not ended.
func (m *merger) lines(ctx context.Context, o nomad.LogOptions, each func(string) error, whole bool) (n int64, err error) {
	r, err := m.d.cfg.Nomad.Logs(ctx, o)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { _ = r.Close() })()
	in := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if err == io.EOF {
				err = nil
			}
			if len(line) > 0 && !whole && ctx.Err() == nil {
				n += int64(len(line))
				err = errors.Join(err, each(string(line)))
			}
			return n, err
		}
		n += int64(len(line))
		if err := each(string(line)); err != nil {
			return n, err
		}
	}
}

func (m *merger) write(prefix, line string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if line != "" && line[len(line)-1] != '\n' {
		line += "\n"
	}
	_, err := io.WriteString(m.out, prefix+line)
	return err
}
