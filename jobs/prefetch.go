package jobs

import (
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

const (
	// prefetchPriority is below that of everything else: nobody waits for it.
	prefetchPriority = 20
	// prefetchMB is what Nomad asks for at least; the supervisor does the work.
	prefetchMB = 10
)

// PrefetchSpec is what [Prefetch] needs to know.
type PrefetchSpec struct {
	Namespace  string
	Service    leapcell.Service
	Deployment leapcell.Deployment // with its Image
}

// Prefetch is the job that brings the image of a deployment to every node that has the driver, so that
// no visitor waits for it. It ends when all nodes have it, and is not needed any more then.
func Prefetch(s PrefetchSpec) *api.Job {
	config := leapcell.TaskConfig{
		Mode:       leapcell.TaskPrefetch,
		Image:      s.Deployment.Image,
		Service:    s.Service.Name,
		ServiceID:  s.Service.ID,
		Deployment: s.Deployment.ID,
	}
	task := newTask(s.Service.ID, config, prefetchMB)
	job := newJob(api.JobTypeSysbatch, leapcell.PrefetchJobID(s.Deployment.ID), s.Namespace, s.Service, s.Deployment, task)
	job.Priority = new(prefetchPriority)
	job.UI = &api.JobUIConfig{Description: "Brings the image of deployment " + s.Deployment.ID + " to every node"}
	job.TaskGroups[0].RestartPolicy = &api.RestartPolicy{
		Attempts: new(2), Interval: new(30 * time.Minute), Delay: new(5 * time.Second),
		Mode: new(api.RestartPolicyModeFail),
	}
	return job
}
