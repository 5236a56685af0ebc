package supervisor

import "github.com/leapcell/leapcell"

func (t *task) forget() bool { return t.req.Config.Mode == leapcell.TaskForget }

// runForget removes the caches of the service's builds from this node.
func (t *task) runForget() Exit {
	id := t.req.Config.ServiceID
	if err := t.sup.caches.Forget(id, id+leapcell.ChangesCache); err != nil {
		t.log.Error("build caches could not be removed", "error", err)
		return Exit{Code: 1, Message: "the build caches could not be removed: " + describe(err)}
	}
	return Exit{Message: "the build caches are removed"}
}
