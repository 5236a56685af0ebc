package jobs

import (
	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// Forget is the job that removes from every node what it keeps between builds of a service.
func Forget(namespace string, svc leapcell.Service) *api.Job {
	// There is nothing to run, but the driver wants each task to name an image.
	config := leapcell.TaskConfig{Mode: leapcell.TaskForget, Image: "none", Service: svc.Name, ServiceID: svc.ID}
	task := newTask(svc.ID, config, prefetchMB)
	job := newJob(api.JobTypeSysbatch, leapcell.ForgetJobID(svc.ID), namespace, svc, leapcell.Deployment{}, task)
	job.UI = &api.JobUIConfig{Description: "Removes the build caches of the service " + svc.Name + " from every node"}
	return job
}
