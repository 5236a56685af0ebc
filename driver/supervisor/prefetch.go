package supervisor

import (
	"context"
	"time"

	"github.com/leapcell/leapcell"
)

func (t *task) prefetch() bool { return t.req.Config.Mode == leapcell.TaskPrefetch }

// runPrefetch brings the task's image to this node and that is all. The store keeps an image for
// a while after it was asked for, so that a first visit finds it.
func (t *task) runPrefetch(ctx context.Context) Exit {
	begin := time.Now()
	_, err := t.sup.images.Pull(ctx, t.req.Config.Image)
	switch {
	case t.isStopping():
		return Exit{Message: "stopped"} // a pull that has begun goes on: others may wait for it
	case err != nil:
		t.log.Error("image could not be fetched", "image", t.req.Config.Image, "error", err)
		return Exit{Code: 1, Message: "the image could not be pulled: " + describe(err)}
	}
	return Exit{Message: "the image is here, after " + time.Since(begin).Round(time.Millisecond).String()}
}
