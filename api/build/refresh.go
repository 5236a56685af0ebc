package build

import (
	"context"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/leapcell/leapcell"
)

// madeAnnotation is when a base image was made or fetched, in its manifest.
const madeAnnotation = "dev.leapcell.made"

// made notes the time in an image.
func made(img v1.Image, at time.Time) v1.Image {
	return mutate.Annotations(img, map[string]string{madeAnnotation: at.UTC().Format(time.RFC3339)}).(v1.Image)
}

// System is a base image as it is.
type System struct {
	Name   string    `json:"name"`
	Image  string    `json:"image,omitempty"` // reference with digest; "" until it is made
	MadeAt time.Time `json:"madeAt,omitzero"`
	Making bool      `json:"making,omitempty"`
	Error  string    `json:"error,omitempty"` // of the last try
}

// Status is a runtime with the systems that its default version stands on.
type Status struct {
	Runtime
	Systems []System `json:"systems"`
}

// named is a base and its name.
type named struct {
	name string
	base Base
}

func systemsOf(r Runtime) []named {
	out := []named{{r.Name, r.Base}}
	if r.Run != nil {
		out = append(out, named{runName(r), *r.Run})
	}
	return out
}

// Statuses is the table, with what there is of it.
func (b *Builder) Statuses(ctx context.Context) ([]Status, error) {
	var out []Status
	for _, r := range b.cfg.Runtimes {
		status := Status{Runtime: r}
		for _, n := range systemsOf(r) {
			s, err := b.look(ctx, n)
			if err != nil {
				return nil, err
			}
			status.Systems = append(status.Systems, s)
		}
		out = append(out, status)
	}
	return out, nil
}

func (b *Builder) look(ctx context.Context, n named) (System, error) {
	tag := n.base.tag(b.cfg.Suite)
	key := n.name + ":" + tag
	s := System{Name: n.name}
	b.mu.Lock()
	_, s.Making = b.flights[key]
	if err := b.failed[key]; err != nil {
		s.Error = leapcell.ErrorMessage(err)
	}
	b.mu.Unlock()
	reference, err := b.cfg.Images.Resolve(ctx, "base/"+n.name, tag)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.Image = reference
	s.MadeAt, err = b.madeAt(ctx, "base/"+n.name, tag)
	return s, err
}

func (b *Builder) madeAt(ctx context.Context, repository, tag string) (time.Time, error) {
	img, err := b.cfg.Images.Image(ctx, repository, tag)
	if err != nil {
		return time.Time{}, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return time.Time{}, err
	}
	at, err := time.Parse(time.RFC3339, manifest.Annotations[madeAnnotation])
	if err != nil {
		return time.Time{}, nil // of a former release: as old as can be
	}
	return at, nil
}

// Update makes the systems of a runtime anew, with the packages or the image of today. It tells
// progress, and goes on when the caller leaves. What was built on the former ones keeps them.
func (b *Builder) Update(ctx context.Context, r Runtime, progress func(string)) error {
	for _, n := range systemsOf(r) {
		f := b.board(n.name, n.base, progress)
		select {
		case <-f.done:
			f.leave()
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			f.leave()
			return ctx.Err()
		}
	}
	return nil
}

// refresh makes a system anew that is too old, and does not wait for it.
func (b *Builder) refresh(ctx context.Context, n named, say func(string)) {
	if b.cfg.MaxAge <= 0 {
		return
	}
	at, err := b.madeAt(ctx, "base/"+n.name, n.base.tag(b.cfg.Suite))
	if err != nil || time.Since(at) < b.cfg.MaxAge {
		return
	}
	b.mu.Lock()
	tried := b.tried[n.name]
	again := time.Since(tried) > time.Hour // a mirror that is away is not asked at each deployment
	if again {
		b.tried[n.name] = time.Now()
	}
	b.mu.Unlock()
	if !again {
		return
	}
	say("the " + n.name + " base image is old: a new one is being made for the deployments after this one")
	b.board(n.name, n.base, func(string) {}).leave()
}
